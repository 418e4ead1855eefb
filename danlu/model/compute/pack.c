/* Weights in the order in which blocks.c and floats.c read them, rounded on the way where they are to be: each goes over once,
 * 16 outputs by 32 inputs at a time.
 *
 * Numbers are rounded as rounding.py does it. Of bfloat16, and of codes where pairs are multiplied, two neighbouring inputs of
 * an output lie side by side. */
#include "lanes.h"

#define TILE 16
#define CHUNK 32
#define PARTS (TILE / LANES)

enum { BF16, INT8, INT4, FLOAT32 };

/* Rows of one tile: those that there are; the rest are zeros. */
typedef struct {
    const char *rows;
    long stride, count, inputs; /* of bytes; rows; numbers of a row */
    int is_wide;
} Rows;

/* 32 inputs from `start` on, of 16 outputs each. */
INLINE void read_chunk(const Rows *own, long start, lanes x[CHUNK][PARTS]) {
    const long size = own->is_wide ? 4 : 2, left = own->inputs - start;
    for (int n = 0; n < PARTS; n++)
        for (int d = 0; d < CHUNK; d += LANES) {
            lanes y[LANES];
            for (int row = 0; row < LANES; row++) {
                const long output = n * LANES + row, some = left - d < 0 ? 0 : left - d;
                const char *from = own->rows + output * own->stride + (start + d) * size;
                char filled[LANES * 4] = {0};
                if (output >= own->count || some == 0) from = filled;
                else if (some < LANES) from = memcpy(filled, from, some * size);
                y[row] = lanes_at(from, 0, own->is_wide);
            }
            transpose(y);
            for (int i = 0; i < LANES; i++) x[d + i][n] = y[i];
        }
}

/* To the nearest, ties to even, of numbers below 2^22. */
INLINE ints nearest(lanes x) {
    const lanes most = spread(12582912.0f);
    return (ints)(x + most) - (ints)most;
}

INLINE lanes each_smaller(lanes a, lanes b) { return -each_larger(-a, -b); }

/* As bfloat16, and wide again. */
INLINE lanes rounded(lanes x) {
    float numbers[LANES];
    *(lanes *)numbers = x;
    for (int i = 0; i < LANES; i++) numbers[i] = wide(narrow(numbers[i]));
    return *(lanes *)numbers;
}

/* Codes of 32 inputs as bytes, (32 inputs, 16 outputs), or (16 pairs, 16 outputs, 2). */
INLINE void put_bytes(const ints codes[CHUNK][PARTS], uint8_t *out, const int is_in_pairs) {
    for (int d = 0; d < CHUNK; d += 2) {
        int32_t both[2][TILE];
        for (int n = 0; n < PARTS; n++) {
            *(ints *)(both[0] + n * LANES) = codes[d][n];
            *(ints *)(both[1] + n * LANES) = codes[d + 1][n];
        }
        for (int o = 0; o < TILE; o++) out[d * TILE + (is_in_pairs ? 2 * o : o)] = (uint8_t)both[0][o];
        for (int o = 0; o < TILE; o++) out[d * TILE + (is_in_pairs ? 2 * o + 1 : TILE + o)] = (uint8_t)both[1][o];
    }
}

INLINE void put_pairs(lanes x[CHUNK][PARTS], bf16 *out) {
    for (int d = 0; d < CHUNK; d += 2)
        for (int n = 0; n < PARTS; n++) {
            const ints low = (ints)x[d][n] >> 16 & 0xffff, high = (ints)x[d + 1][n] & (int)0xffff0000;
            *(ints *)(out + d * TILE + 2 * n * LANES) = low | high;
        }
}

/* One scale an output: the largest number is 127. */
INLINE void pack8(const Rows *own, long chunks, char *out, long apart, float *scales, const int is_in_pairs) {
    lanes most[PARTS], x[CHUNK][PARTS];
    for (int n = 0; n < PARTS; n++) most[n] = (lanes){0};
    for (long c = 0; c < chunks; c++) {
        read_chunk(own, c * CHUNK, x);
        for (int d = 0; d < CHUNK; d++)
            for (int n = 0; n < PARTS; n++) { /* as integers, so that what is not a number is the largest */
                const ints size = (ints)x[d][n] & 0x7fffffff, is_more = size > (ints)most[n];
                most[n] = (lanes)((size & is_more) | ((ints)most[n] & ~is_more));
            }
    }
    for (int n = 0; n < PARTS; n++) {
        const lanes scale = most[n] / spread(127), least = spread(1e-12f);
        const ints is_less = scale < least;
        most[n] = (lanes)(((ints)least & is_less) | ((ints)scale & ~is_less));
        *(lanes *)(scales + n * LANES) = most[n];
    }
    for (long c = 0; c < chunks; c++, out += apart) {
        ints codes[CHUNK][PARTS];
        read_chunk(own, c * CHUNK, x);
        for (int d = 0; d < CHUNK; d++)
            for (int n = 0; n < PARTS; n++) codes[d][n] = nearest(x[d][n] / most[n]);
        put_bytes(codes, (uint8_t *)out, is_in_pairs);
    }
}

/* A step and a middle of 32 inputs of an output: 16 steps from the least to the largest. Two codes lie in a byte. */
INLINE void pack4(const Rows *own, long chunks, char *out, long apart, bf16 *scales, long scales_apart, const int is_in_pairs) {
    lanes x[CHUNK][PARTS];
    for (long c = 0; c < chunks; c++, out += apart, scales += scales_apart) {
        ints codes[CHUNK][PARTS];
        read_chunk(own, c * CHUNK, x);
        for (int n = 0; n < PARTS; n++) {
            lanes least = x[0][n], most = x[0][n], all = {0};
            for (int d = 0; d < CHUNK; d++) {
                least = each_smaller(least, x[d][n]);
                most = each_larger(most, x[d][n]);
                all += x[d][n] * (lanes){0}; /* what is not a number makes it none */
            }
            const lanes sixteenth = (most - least + all) / spread(15), tiny = spread(1e-12f);
            const ints is_less = sixteenth < tiny;
            const lanes step = rounded((lanes)(((ints)tiny & is_less) | ((ints)sixteenth & ~is_less)));
            const lanes middle = rounded(least + spread(8) * step);
            float numbers[2][LANES];
            *(lanes *)numbers[0] = step;
            *(lanes *)numbers[1] = middle;
            for (int i = 0; i < LANES; i++) {
                scales[n * LANES + i] = narrow(numbers[0][i]);
                scales[TILE + n * LANES + i] = narrow(numbers[1][i]);
            }
            for (int d = 0; d < CHUNK; d++) {
                const lanes within = each_smaller(each_larger((x[d][n] - middle) / step + spread(8), spread(0)), spread(15));
                codes[d][n] = nearest(within);
            }
        }
        uint8_t bytes[CHUNK * TILE];
        put_bytes(codes, bytes, is_in_pairs);
        for (int i = 0; i < CHUNK * TILE / 2; i++) out[i] = bytes[i] | bytes[CHUNK * TILE / 2 + i] << 4;
    }
}

/* Blocks `first` to `last` of a layer: rows (outputs, inputs), `stride` bytes apart; of two layers side by side (is_paired) a
 * block has a tile of each. out: (blocks, chunks, 2 tiles, numbers of a tile). scales: of int8 (blocks, 32), of int4 (blocks,
 * chunks, 2 tiles, step and middle, 16). */
void danlu_pack(const void *from, long stride, long outputs, long inputs, int is_wide, int is_paired, int format, int is_in_pairs,
                long first, long last, void *out, void *scales, int threads) {
    const long chunks = (inputs + CHUNK - 1) / CHUNK;
    const long bytes = format == BF16 ? 1024 : format == INT8 ? 512 : format == INT4 ? 256 : 2048;
#pragma omp parallel for num_threads(threads)
    for (long at = 2 * first; at < 2 * last; at++) {
        const long block = at / 2, tile = at % 2, half = outputs / 2;
        const long row = is_paired ? tile * half + block * TILE : at * TILE, end = is_paired && !tile ? half : outputs;
        const Rows own = {(const char *)from + row * stride, stride, end > row ? end - row : 0, inputs, is_wide};
        char *to = (char *)out + (block * chunks * 2 + tile) * bytes;
        if (format == INT8) {
            if (is_in_pairs) pack8(&own, chunks, to, 2 * bytes, (float *)scales + at * TILE, 1);
            else pack8(&own, chunks, to, 2 * bytes, (float *)scales + at * TILE, 0);
        } else if (format == INT4) {
            bf16 *numbers = (bf16 *)scales + (block * chunks * 2 + tile) * 2 * TILE;
            if (is_in_pairs) pack4(&own, chunks, to, 2 * bytes, numbers, 4 * TILE, 1);
            else pack4(&own, chunks, to, 2 * bytes, numbers, 4 * TILE, 0);
        } else
            for (long c = 0; c < chunks; c++, to += 2 * bytes) {
                lanes x[CHUNK][PARTS];
                read_chunk(&own, c * CHUNK, x);
                if (format == BF16) put_pairs(x, (bf16 *)to);
                else
                    for (int d = 0; d < CHUNK; d++)
                        for (int n = 0; n < PARTS; n++) *(lanes *)((float *)to + d * TILE + n * LANES) = x[d][n];
            }
    }
}
