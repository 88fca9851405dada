// Which expert owns a row, where rows are sorted by expert.

// `ends` i32 [e]: expert e owns rows ends[e - 1] to ends[e], from 0 for the first. The first expert whose end lies beyond the row; the last
// one owns what lies beyond all ends. There is at least one expert.
__device__ __forceinline__ unsigned int expert_of_row(const int *ends, unsigned int num_experts, unsigned int row) {
    unsigned int low = 0, high = num_experts - 1;
    while (low < high) {
        const unsigned int middle = low + (high - low) / 2;
        if (ends[middle] > 0 && (unsigned int)ends[middle] > row) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}
