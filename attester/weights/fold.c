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

/* products = weights * inputs, exact: 4,096 products of two int8 fit into 31 bits.  For few columns only: each
   column reads all weights of its row again, from the nearest cache.  inputs is [columns][k], of int16. */
void touchstone_multiply(const int8_t *restrict weights, const int16_t *restrict inputs,
                         int32_t *restrict products, size_t rows, size_t k, size_t columns) {
    for (size_t i = 0; i < rows; i++) {
        const int8_t *restrict w = weights + i * k;
        size_t j = 0;
        for (; j + 4 <= columns; j += 4) {
            const int16_t *restrict a = inputs + j * k, *restrict b = a + k, *restrict c = b + k, *restrict d = c + k;
            int32_t s = 0, t = 0, u = 0, v = 0;
            for (size_t x = 0; x < k; x++) {
                int16_t y = w[x];
                s += y * a[x];
                t += y * b[x];
                u += y * c[x];
                v += y * d[x];
            }
            products[i * columns + j] = s;
            products[i * columns + j + 1] = t;
            products[i * columns + j + 2] = u;
            products[i * columns + j + 3] = v;
        }
        for (; j < columns; j++) {
            const int16_t *restrict a = inputs + j * k;
            int32_t s = 0;
            for (size_t x = 0; x < k; x++) s += (int16_t)w[x] * a[x];
            products[i * columns + j] = s;
        }
    }
}

/* counts[value] += how often each number of 16 bits stands at every stride-th place, for at most 2^31 of them.
   Two tables, because equal neighbours would wait for each other's store. */
void touchstone_count(const uint16_t *restrict numbers, size_t count, size_t stride, uint32_t *restrict counts,
                      uint32_t *restrict second) {
    size_t i = 0;
    for (; i + 2 <= count; i += 2) {
        counts[numbers[i * stride]]++;
        second[numbers[(i + 1) * stride]]++;
    }
    if (i < count) counts[numbers[i * stride]]++;
}
