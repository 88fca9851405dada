// Arithmetic of MXFP4 on the bits of bf16, two elements to a register. The CPU's is quant/src/mxfp4/lanes.rs, with the same results;
// what they must be is defined in quant/src/mxfp4/reference.rs.
//
// "word": eight codes, element k in bits 4 k. "pair": two bf16, the first in the low half. Nothing here needs a header, and all of it also
// compiles for the host, where tests/native/cuda_emulator.cpp stands in for the device.
//
// Accuracy: exact. The sums of errors are exact in f32 in any order, so neither fused nor separate operations change a bit; subnormal
// floats must not be flushed (--ftz=false).

constexpr unsigned int BLOCK_ELEMENTS = 32;

// Bits of a bf16 without its sign, twice.
constexpr unsigned int MAGNITUDES = 0x7fff7fffu;

// The least bits of a magnitude that is infinite or NaN.
constexpr unsigned int NOT_FINITE = 0x7f80u;

// Scales under which every code is a normal bf16.
constexpr unsigned int SMALLEST_NORMAL_SCALE = 2;
constexpr unsigned int LARGEST_SCALE = 252;

// The scale byte that stands for NaN.
constexpr unsigned int RESERVED_SCALE = 255;

// Up to this scale subnormal elements may count.
constexpr unsigned int SMALLEST_SCALE = 3;

// What is wrong, first place first: the index above, the byte that is to blame (or 0) below.
__device__ __forceinline__ void report(unsigned long long *first, unsigned long long index, unsigned int byte) {
    atomicMin(first, index << 8 | byte);
}

// ---- Codes to values -----------------------------------------------------------------------------------------------------------------

// The bytes of the values of codes 0 to 7 under a scale.
struct ValueTable {
    unsigned int low_0123, low_4567, high_0123, high_4567;
};

// Exact for normal scales. No sum carries from one half into the other: the largest is 0x7f40.
__device__ __forceinline__ ValueTable value_table(unsigned int scale) {
    const unsigned int ones = scale * 0x00800080u;
    const unsigned int codes_01 = (ones - 0x00800080u) & 0xffff0000u;
    const unsigned int codes_23 = ones + 0x00400000u;
    const unsigned int codes_45 = ones + 0x00c00080u;
    const unsigned int codes_67 = ones + 0x01400100u;
    return {__byte_perm(codes_01, codes_23, 0x6420), __byte_perm(codes_45, codes_67, 0x6420), __byte_perm(codes_01, codes_23, 0x7531),
            __byte_perm(codes_45, codes_67, 0x7531)};
}

// The four pairs of a word, for a normal scale.
__device__ __forceinline__ uint4 unpack_word(unsigned int word, unsigned int scale) {
    const ValueTable table = value_table(scale);
    const unsigned int magnitudes = word & 0x77777777u;
    const unsigned int low_0123 = __byte_perm(table.low_0123, table.low_4567, magnitudes);
    const unsigned int high_0123 = __byte_perm(table.high_0123, table.high_4567, magnitudes);
    const unsigned int low_4567 = __byte_perm(table.low_0123, table.low_4567, magnitudes >> 16);
    const unsigned int high_4567 = __byte_perm(table.high_0123, table.high_4567, magnitudes >> 16);
    // The sign of an odd element is the top bit of its byte, that of an even one the top bit of its byte moved up.
    const unsigned int up = word << 4;
    uint4 pairs;
    pairs.x = __byte_perm(low_0123, high_0123, 0x5140) | (__byte_perm(up, word, 0x4400) & 0x80008000u);
    pairs.y = __byte_perm(low_0123, high_0123, 0x7362) | (__byte_perm(up, word, 0x5511) & 0x80008000u);
    pairs.z = __byte_perm(low_4567, high_4567, 0x5140) | (__byte_perm(up, word, 0x6622) & 0x80008000u);
    pairs.w = __byte_perm(low_4567, high_4567, 0x7362) | (__byte_perm(up, word, 0x7733) & 0x80008000u);
    return pairs;
}

// The bits of a code's value under any scale but 255; infinite, as IEEE has it, where bf16 cannot hold it.
__device__ __forceinline__ unsigned int value_exact(unsigned int code, unsigned int scale) {
    const unsigned int magnitude = code & 7;
    const int normal = (int)(scale * 0x80) + (magnitude == 1 ? -0x80 : (int)(magnitude - 2) * 0x40);
    // In units of 2^-133, the smallest bf16; of codes from 4 on a step is two halves, of those from 6 on four.
    const unsigned int halves = magnitude < 4 ? magnitude : magnitude < 6 ? 2 * magnitude - 4 : 4 * magnitude - 16;
    int bits = normal >= 0x80 ? normal : (int)(halves << (5 + scale));
    bits = magnitude == 0 ? 0 : bits < (int)NOT_FINITE ? bits : (int)NOT_FINITE;
    return (unsigned int)bits | (code & 8) << 12;
}

// The four pairs of a word under any scale; where one of them is no number, `index` is reported as that of the scale.
__device__ __noinline__ uint4 unpack_word_exact(unsigned int word, unsigned int scale, unsigned long long index, unsigned long long *first_bad) {
    uint4 pairs = {0, 0, 0, 0};
    bool is_finite = scale != RESERVED_SCALE;
    for (unsigned int element = 0; element < 8; ++element) {
        const unsigned int bits = value_exact(word >> (4 * element) & 0xf, scale);
        is_finite &= (bits & 0x7fff) < NOT_FINITE;
        const unsigned int placed = bits << (16 * (element % 2));
        pairs.x |= element / 2 == 0 ? placed : 0;
        pairs.y |= element / 2 == 1 ? placed : 0;
        pairs.z |= element / 2 == 2 ? placed : 0;
        pairs.w |= element / 2 == 3 ? placed : 0;
    }
    if (!is_finite) {
        report(first_bad, index, scale);
    }
    return pairs;
}

__device__ __forceinline__ uint4 unpack_any_word(unsigned int word, unsigned int scale, unsigned long long index,
                                                 unsigned long long *first_bad) {
    if (scale - SMALLEST_NORMAL_SCALE > LARGEST_SCALE - SMALLEST_NORMAL_SCALE) {
        return unpack_word_exact(word, scale, index, first_bad);
    }
    return unpack_word(word, scale);
}

// ---- Values to codes -----------------------------------------------------------------------------------------------------------------

// The scale that follows from the bits of a block's largest magnitude. `round_up` is what a rule adds to them: 0x20 for even, 0 for floor,
// mse and hint, 0x3f for rceil.
__device__ __forceinline__ unsigned int rule_scale(unsigned int largest, unsigned int round_up) {
    const int scale = (int)((largest + round_up) >> 7) - 2;
    return (unsigned int)min(max(scale, 0), (int)LARGEST_SCALE);
}

// What is added to a pair of magnitudes to compare it with midpoints; each half has the scale of its own element.
struct Thresholds {
    unsigned int half, one, above_one, units;
};

__device__ __forceinline__ unsigned int halves(unsigned int first, unsigned int second) { return (first & 0xffff) | second << 16; }

// For scales from 2 on no sum with a magnitude leaves 16 bits.
template <bool IS_EVEN>
__device__ __forceinline__ Thresholds thresholds(unsigned int first, unsigned int second) {
    // A half is code 1 from above 1/4 on, which is 0x3e80 in units; code 2 starts at 3/4, 0x3f40, the tie included if it goes to even.
    const unsigned int one_starts = IS_EVEN ? 0xbf : 0xc0;
    first = 0x100 - first * 0x80;
    second = 0x100 - second * 0x80;
    return {halves(first, second), halves(first - one_starts, second - one_starts), halves(first - 0x100, second - 0x100),
            halves(first + 0x3e80, second + 0x3e80)};
}

// The codes, 0 to 7, of a pair of magnitudes, in bits 0 and 16; `is_not_zero` is 1 where a code is.
template <bool IS_EVEN>
__device__ __forceinline__ unsigned int magnitude_codes(unsigned int magnitudes, const Thresholds &add, unsigned int &is_not_zero) {
    is_not_zero = __viaddmin_s16x2_relu(magnitudes, add.half, 0x00010001u);
    const unsigned int is_from_one = __viaddmin_s16x2_relu(magnitudes, add.one, 0x00010001u);
    // From 1 on codes are a bit of mantissa below an exponent, as in bf16: the lower six bits are rounded off, up to 6 at 0x140 above 1.
    const unsigned int above_one = __viaddmin_s16x2_relu(magnitudes, add.above_one, 0x01400140u);
    const unsigned int tie = IS_EVEN ? above_one >> 6 & 0x00010001u : 0;
    const unsigned int rounded = (above_one + tie + 0x001f001fu) >> 6;
    // Bits of the high half that were moved into the low one are masked away here.
    return (is_not_zero + is_from_one + rounded) & 0x00070007u;
}

// The codes, 0 to 15, of a pair, in bits 0 and 16.
template <bool IS_EVEN>
__device__ __forceinline__ unsigned int pair_codes(unsigned int pair, const Thresholds &add) {
    unsigned int is_not_zero;
    const unsigned int codes = magnitude_codes<IS_EVEN>(pair & MAGNITUDES, add, is_not_zero);
    // Toward zero, only what is not zero keeps its sign.
    const unsigned int keeps_sign = IS_EVEN ? 0x00080008u : is_not_zero << 3;
    return codes | (pair >> 12 & keeps_sign);
}

// The word of four pairs that share a scale.
template <bool IS_EVEN>
__device__ __forceinline__ unsigned int pack_word(const uint4 &pairs, const Thresholds &add) {
    const unsigned int codes_0123 = pair_codes<IS_EVEN>(pairs.x, add) | pair_codes<IS_EVEN>(pairs.y, add) << 8;
    const unsigned int codes_4567 = pair_codes<IS_EVEN>(pairs.z, add) | pair_codes<IS_EVEN>(pairs.w, add) << 8;
    return __byte_perm(codes_0123 | codes_0123 >> 12, codes_4567 | codes_4567 >> 12, 0x5410);
}

// Adds to `first` and `second` the squared errors of a pair, in units, less those of packing zeros: q (q - 2 t), multiples of 2^-9.
template <bool IS_EVEN>
__device__ __forceinline__ void add_errors(unsigned int pair, const Thresholds &add, float &first, float &second) {
    const unsigned int magnitudes = pair & MAGNITUDES;
    unsigned int is_not_zero;
    const unsigned int codes = magnitude_codes<IS_EVEN>(magnitudes, add, is_not_zero);
    const unsigned int units = __viaddmax_s16x2_relu(magnitudes, add.units, 0);
    // A code below the exponent of f32 is its value times 2^-126, as E2M1 has the subnormal numbers of f32.
    constexpr float FROM_SUBNORMAL = 85070591730234615865843651857942052864.0f;
    const float first_packed = __uint_as_float(codes << 22) * FROM_SUBNORMAL;
    const float second_packed = __uint_as_float(codes << 6 & 0x01c00000u) * FROM_SUBNORMAL;
    first = __fmaf_rn(first_packed, __fmaf_rn(-2.0f, __uint_as_float(units << 16), first_packed), first);
    second = __fmaf_rn(second_packed, __fmaf_rn(-2.0f, __uint_as_float(units & 0xffff0000u), second_packed), second);
}

// The factor from units of `scale` squared to those of `start`.
__device__ __forceinline__ float in_squared_units(unsigned int scale, unsigned int start) {
    return __uint_as_float((127 + 2 * (scale - start)) << 23);
}

// The scale above `start`, the other candidate of a search.
__device__ __forceinline__ unsigned int next_scale(unsigned int start) { return min(start + 1, LARGEST_SCALE); }

// Whether a hint is a third candidate; outside of -1..4 above `start` it cannot win (rows.rs, `can_win`), and above 252 it is none.
__device__ __forceinline__ bool is_third(unsigned int hint, unsigned int start) {
    return hint <= LARGEST_SCALE && (hint + 1 == start || (hint - start <= 4 && hint != start && hint != next_scale(start)));
}

// The scale with the smallest error; of equals the hint, then `start`. Errors are in units of `start` squared; that of a hint that is no
// third candidate is ignored.
__device__ __forceinline__ unsigned int best_scale(unsigned int start, float of_start, float of_next, unsigned int hint, float of_hint) {
    const unsigned int next = next_scale(start);
    if (is_third(hint, start) && of_hint <= of_start) {
        return of_next < of_hint ? next : hint;
    }
    return of_next < of_start || (hint == next && of_next == of_start) ? next : start;
}

// ---- A whole block by the definition, for what the integers cannot do ----------------------------------------------------------------

// Midpoints between the magnitudes of neighbouring codes, and the magnitudes, in quarters.
__device__ __forceinline__ double midpoint(unsigned int below) {
    return 0.25 * (below < 4 ? 2 * below + 1 : below == 4 ? 10 : below == 5 ? 14 : 20);
}

__device__ __forceinline__ double code_value(unsigned int code) {
    const unsigned int magnitude = code & 7;
    return 0.5 * (magnitude < 4 ? magnitude : magnitude < 6 ? 2 * magnitude - 4 : 4 * magnitude - 16);
}

__device__ __forceinline__ double scale_value(unsigned int scale) {
    return __longlong_as_double((long long)(scale + 896) << 52);
}

__device__ __forceinline__ double magnitude_value(unsigned int bits) { return (double)__uint_as_float((bits & 0x7fff) << 16); }

__device__ __forceinline__ unsigned int code_exact(unsigned int bits, double unit, bool is_even) {
    const double magnitude = magnitude_value(bits);
    unsigned int code = 0;
    for (unsigned int below = 0; below < 7; ++below) {
        const double limit = midpoint(below) * unit;
        code += magnitude > limit || (is_even && below % 2 == 1 && magnitude == limit);
    }
    return is_even || code != 0 ? code | (bits >> 12 & 8) : 0;
}

// The squared error of a block less that of packing zeros. Products and, for every candidate that can win, sums are exact in f64.
__device__ __forceinline__ double error_exact(const unsigned short *values, unsigned long long stride, unsigned int scale, bool is_even) {
    const double unit = scale_value(scale);
    double error = 0;
    for (unsigned int element = 0; element < BLOCK_ELEMENTS; ++element) {
        const unsigned int bits = values[element * stride];
        const double packed = code_value(code_exact(bits, unit, is_even)) * unit;
        error += packed * (packed - 2.0 * magnitude_value(bits));
    }
    return error;
}

// Packs 32 values that lie `stride` apart, to 16 bytes at `block` and a scale. Returns 32, or the first element that is no number, when
// nothing is written. `hint` is 255 where there is none; `searches` is that of the rules mse and hint.
__device__ __noinline__ unsigned int pack_block_exact(const unsigned short *values, unsigned long long stride, unsigned int round_up,
                                                      bool searches, bool is_even, unsigned int hint, unsigned int *block,
                                                      unsigned char *scale) {
    unsigned int largest = 0;
    for (unsigned int element = 0; element < BLOCK_ELEMENTS; ++element) {
        const unsigned int magnitude = values[element * stride] & 0x7fff;
        if (magnitude >= NOT_FINITE) {
            return element;
        }
        largest = max(largest, magnitude);
    }
    unsigned int best = rule_scale(largest, round_up);
    if (searches) {
        const unsigned int start = best, next = next_scale(start);
        const bool has_hint = hint != RESERVED_SCALE;
        bool is_chosen = false;
        if (has_hint && hint > LARGEST_SCALE) {
            // Larger scales are kept only where they lose nothing: what they rounded up might exceed bf16.
            is_chosen = true;
            const double unit = scale_value(hint);
            for (unsigned int element = 0; element < BLOCK_ELEMENTS; ++element) {
                const unsigned int bits = values[element * stride];
                is_chosen &= code_value(code_exact(bits, unit, is_even)) * unit == magnitude_value(bits);
            }
            best = is_chosen ? hint : start;
        }
        if (!is_chosen) {
            double least = error_exact(values, stride, start, is_even);
            if (has_hint && hint <= LARGEST_SCALE) {
                const double error = error_exact(values, stride, hint, is_even);
                best = error <= least ? hint : start;
                least = min(error, least);
            }
            best = error_exact(values, stride, next, is_even) < least ? next : best;
        }
    }
    const double unit = scale_value(best);
    for (unsigned int first = 0; first < BLOCK_ELEMENTS; first += 8) {
        unsigned int word = 0;
        for (unsigned int element = 0; element < 8; ++element) {
            word |= code_exact(values[(first + element) * stride], unit, is_even) << (4 * element);
        }
        block[first / 8] = word;
    }
    *scale = (unsigned char)best;
    return BLOCK_ELEMENTS;
}
