/* total += mix(products * factor), for a tile of rows: the step of a walk that follows its products.
   Unsigned arithmetic wraps modulo 2^32, as docs/possession.md specifies. */
#include <stddef.h>
#include <stdint.h>

static inline uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x21F0AAADu;
    x ^= x >> 15;
    x *= 0x735A2D97u;
    x ^= x >> 15;
    return x;
}

void touchstone_fold(uint32_t *restrict total, const uint32_t *restrict products,
                     const uint32_t *restrict factor, size_t rows, size_t columns) {
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            total[i * columns + j] += mix(products[i * columns + j] * factor[j]);
}
