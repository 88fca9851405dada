// MXFP4 to bf16, exactly.
//
// mxfp4_unpack_rows_bf16
//   blocks u8 [n, 16], scales u8 [n] -> out bf16 [n, 32].
//   Four lanes to a block, a word of eight codes each: a warp reads 128 bytes and writes 512 at a time, four times in a row so that four
//   loads are under way. A step of a warp is 32 blocks; warps stride over the grid. Blocks of 256 threads, any grid in x.
//   Alignment: blocks 4 bytes, out 16 bytes. Any n.
//
// mxfp4_unpack_columns_bf16
//   blocks u8 [e, out, s, 16], scales u8 [e, out, s] -> out bf16 [e, 32 s, out].
//   A thread block takes tiles of 64 outputs by 8 blocks: 16 bytes a thread into shared memory, eight neighbouring threads to an output;
//   then each warp has one block of each output, each lane a word of eight neighbouring outputs, which it transposes in registers and
//   writes as 16 bytes to eight rows, eight lanes to a whole line of 128 bytes. Blocks of 256 threads, any grid in x.
//   Alignment: blocks 16 bytes; out 16 bytes with outputs a multiple of 8 (else elements are written singly). Any e, out, s.
//
// first_bad u64, ~0 before: the smallest `index << 8 | scale` of the scales that are 255 or too large for bf16 (element.cuh, `report`).
// Accuracy: exact for every code and every scale.

#include "mxfp4_element.cuh"

constexpr unsigned int TILE_OUTPUTS = 64;
constexpr unsigned int TILE_BLOCKS = 8;

extern "C" __global__ void __launch_bounds__(256)
    mxfp4_unpack_rows_bf16(const unsigned int *__restrict__ blocks, const unsigned char *__restrict__ scales, uint4 *__restrict__ out,
                           unsigned long long num_blocks, unsigned long long *first_bad) {
    constexpr unsigned int PIECES = 4, PIECE_BLOCKS = 8;
    const unsigned int lane = threadIdx.x % 32;
    const unsigned long long warp = (blockIdx.x * 256ull + threadIdx.x) / 32;
    const unsigned long long step = gridDim.x * 8ull * PIECES * PIECE_BLOCKS;
    for (unsigned long long first = warp * PIECES * PIECE_BLOCKS; first < num_blocks; first += step) {
        unsigned int words[PIECES], factors[PIECES];
#pragma unroll
        for (unsigned int piece = 0; piece < PIECES; ++piece) {
            const unsigned long long block = first + piece * PIECE_BLOCKS + lane / 4;
            const bool is_inside = block < num_blocks;
            words[piece] = is_inside ? blocks[block * 4 + lane % 4] : 0;
            factors[piece] = is_inside ? scales[block] : SMALLEST_NORMAL_SCALE;
        }
#pragma unroll
        for (unsigned int piece = 0; piece < PIECES; ++piece) {
            const unsigned long long block = first + piece * PIECE_BLOCKS + lane / 4;
            if (block < num_blocks) {
                out[block * 4 + lane % 4] = unpack_any_word(words[piece], factors[piece], block, first_bad);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    mxfp4_unpack_columns_bf16(const uint4 *__restrict__ blocks, const unsigned char *__restrict__ scales, unsigned short *__restrict__ out,
                              unsigned int num_experts, unsigned int outputs, unsigned int row_blocks, unsigned long long *first_bad) {
    __shared__ uint4 tile[TILE_OUTPUTS * TILE_BLOCKS];
    __shared__ uint2 tile_scales[TILE_BLOCKS * TILE_OUTPUTS / 8];
    const unsigned int wide = (outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS, high = (row_blocks + TILE_BLOCKS - 1) / TILE_BLOCKS;
    const unsigned long long num_tiles = (unsigned long long)wide * high * num_experts;
    for (unsigned long long index = blockIdx.x; index < num_tiles; index += gridDim.x) {
        const unsigned int first_output = (unsigned int)(index % wide) * TILE_OUTPUTS;
        const unsigned int first_block = (unsigned int)(index / wide % high) * TILE_BLOCKS;
        const unsigned long long expert = index / wide / high;
        const unsigned long long rows = expert * outputs;
        for (unsigned int chunk = threadIdx.x; chunk < TILE_OUTPUTS * TILE_BLOCKS; chunk += 256) {
            const unsigned int output = chunk / TILE_BLOCKS, block = chunk % TILE_BLOCKS;
            uint4 bytes = {0, 0, 0, 0};
            unsigned char scale = SMALLEST_NORMAL_SCALE;
            if (first_output + output < outputs && first_block + block < row_blocks) {
                const unsigned long long place = (rows + first_output + output) * row_blocks + first_block + block;
                bytes = blocks[place];
                scale = scales[place];
            }
            // Exchanged so that neither side meets a bank twice.
            tile[output * TILE_BLOCKS + (block ^ output / 8 % 8)] = bytes;
            ((unsigned char *)tile_scales)[block * TILE_OUTPUTS + output] = scale;
        }
        __syncthreads();

        const unsigned int lane = threadIdx.x % 32, block = threadIdx.x / 32;
        const unsigned int group = lane % 8, word = lane / 8;
        if (first_block + block < row_blocks && first_output + group * 8 < outputs) {
            const uint2 eight_scales = tile_scales[block * (TILE_OUTPUTS / 8) + group];
            uint4 unpacked[8];
#pragma unroll
            for (unsigned int of = 0; of < 8; ++of) {
                const unsigned int scale = (of < 4 ? eight_scales.x : eight_scales.y) >> (8 * (of % 4)) & 0xff;
                const unsigned int *words = (const unsigned int *)&tile[(group * 8 + of) * TILE_BLOCKS + (block ^ group)];
                const unsigned long long place = (rows + first_output + group * 8 + of) * row_blocks + first_block + block;
                unpacked[of] = unpack_any_word(words[word], scale, place, first_bad);
            }
            const unsigned int output = first_output + group * 8;
            const unsigned long long row = (expert * row_blocks + first_block + block) * BLOCK_ELEMENTS + word * 8;
            unsigned short *to = out + row * outputs + output;
#pragma unroll
            for (unsigned int pair = 0; pair < 4; ++pair) {
                unsigned int pairs[8];
#pragma unroll
                for (unsigned int of = 0; of < 8; ++of) {
                    const uint4 &all = unpacked[of];
                    pairs[of] = pair == 0 ? all.x : pair == 1 ? all.y : pair == 2 ? all.z : all.w;
                }
#pragma unroll
                for (unsigned int odd = 0; odd < 2; ++odd) {
                    const unsigned int order = odd ? 0x7632 : 0x5410;
                    const uint4 values = {__byte_perm(pairs[0], pairs[1], order), __byte_perm(pairs[2], pairs[3], order),
                                          __byte_perm(pairs[4], pairs[5], order), __byte_perm(pairs[6], pairs[7], order)};
                    unsigned short *row_values = to + (2 * pair + odd) * (unsigned long long)outputs;
                    if (outputs % 8 == 0) {
                        *(uint4 *)row_values = values;
                    } else {
                        const unsigned int halves[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
                        for (unsigned int of = 0; of < 8; ++of) {
                            if (output + of < outputs) {
                                row_values[of] = (unsigned short)(halves[of / 2] >> (16 * (of % 2)));
                            }
                        }
                    }
                }
            }
        }
        __syncthreads();
    }
}
