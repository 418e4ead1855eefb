/* Products x W^T with float32 sums on any processor: weights in bfloat16, int8, int4 and codes by groups, or in float32, and
 * rows in bfloat16 or float32.
 *
 * Weights lie as for blocks.c, in the order in which they are read, and become floats in registers: to have them so once for
 * all rows took longer. Each sum goes over the inputs in their order, however many rows there are: a row's answer is the same, bit
 * for bit, whatever rows it comes with. Only what a vector is differs between processors, and how many are at hand.
 */
#include "lanes.h"

#if LANES == 16
#define BOTH 12 /* rows whose sums of a block's two tiles are in registers */
#define TALL 12 /* rows that are taken at once, of both tiles or, where more fit, of one */
#define AT_ONCE 2 /* blocks that one row is multiplied with at once, lest a sum wait for itself */
#define AHEAD 8192 /* bytes of weights that are fetched before they are needed */
#else
#define BOTH (HAS_MANY ? 3 : 1)
#define TALL (HAS_MANY ? 6 : 2)
#define AT_ONCE 1
#define AHEAD 12288
#endif
#define PARTS (16 / LANES) /* vectors of a tile */
#define MOST_TILES (2 * AT_ONCE)

enum { BF16, INT8, INT4, FLOAT32, CODES4, CODES8 };

/* One layer, as in blocks.c, but that of all but bfloat16 no pairs lie side by side: (blocks, chunks, 2 tiles, 32
 * inputs, 16 outputs), of 4 bits 16 inputs in the lower halves of bytes and 16 in the upper ones. */
typedef struct {
    const char *weights;
    const void *scales;
    const float *bias;
    long outputs, inputs, together; /* chunks of a group of codes; of int4 one */
    int is_paired, format;
} Layer;

INLINE long tile_bytes(const int format) {
    return format == BF16 ? 1024 : format == INT8 || format == CODES8 ? 512 : format == FLOAT32 ? 2048 : 256;
}

INLINE int are_codes(const int format) { return format == CODES4 || format == CODES8; }

INLINE lanes floats_of(ints x) { return __builtin_convertvector(x, lanes); }

/* Bytes as integers. */
INLINE ints codes_of(const char *from, const int is_signed) {
#if LANES == 16
    const __m128i bytes = _mm_loadu_si128((const __m128i *)from);
    return (ints)(is_signed ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
#elif LANES == 8
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)from);
    return (ints)(is_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
#else
    const ints codes = {(uint8_t)from[0], (uint8_t)from[1], (uint8_t)from[2], (uint8_t)from[3]};
    return is_signed ? (ints)(codes << 24 >> 24) : codes;
#endif
}

/* The weights of two neighbouring inputs, 2 * (half * 8 + pair) and the next, for the outputs of part n of a tile: as
 * floats, of fewer bits their codes. */
INLINE void open_pair(const char *tile, const int half, int pair, int n, lanes *first, lanes *second, const int format) {
    if (format == BF16) { /* pairs lie side by side */
        ints both = *(const ints *)(tile + (half * 8 + pair) * 64 + n * 4 * LANES);
        *first = (lanes)(both << 16);
        *second = (lanes)(both & (int)0xffff0000);
    } else if (format == INT8 || format == CODES8) {
        const char *codes = tile + (half * 8 + pair) * 32 + n * LANES;
        *first = floats_of(codes_of(codes, format == INT8));
        *second = floats_of(codes_of(codes + 16, format == INT8));
    } else if (format == INT4 || format == CODES4) { /* a byte has the codes of both halves */
        const char *codes = tile + pair * 32 + n * LANES;
        const ints one = codes_of(codes, 0), other = codes_of(codes + 16, 0);
        *first = floats_of(half ? (ints)(one >> 4) : (ints)(one & 15));
        *second = floats_of(half ? (ints)(other >> 4) : (ints)(other & 15));
    } else {
        const float *floats = (const float *)tile + (half * 8 + pair) * 32 + n * LANES;
        *first = *(const lanes *)floats;
        *second = *(const lanes *)(floats + 16);
    }
}

/* What tiles of one chunk bring to the sums of some rows: over its inputs in their order. numbers: of codes by groups, those
 * of the first tile; of the next block's they are `apart` further on. */
INLINE void add_tiles(const char *first_tile, long chunks, const float *x, lanes sums[][TALL][PARTS], const int tiles,
                      const int rows, const float *numbers, long apart, const int format) {
    for (int half = 0; half < 2; half++)
#pragma GCC unroll 2
        for (int pair = 0; pair < 8; pair++, x += 2 * rows) {
#pragma GCC unroll 8
            for (int t = 0; t < tiles; t++) {
                const char *tile = first_tile + (t / 2 * chunks * 2 + t % 2) * tile_bytes(format);
                lanes first[PARTS], second[PARTS];
                for (int n = 0; n < PARTS; n++) open_pair(tile, half, pair, n, first + n, second + n, format);
                for (int n = 0; are_codes(format) && n < PARTS; n++) {
                    const lanes zero = *(const lanes *)(numbers + t / 2 * apart + t % 2 * 32 + 16 + n * LANES);
                    first[n] -= zero;
                    second[n] -= zero;
                }
#pragma GCC unroll 12
                for (int row = 0; row < rows; row++) {
                    const lanes one = spread(x[row]), other = spread(x[rows + row]);
                    for (int n = 0; n < PARTS; n++) sums[t][row][n] = fused(first[n], one, sums[t][row][n]);
                    for (int n = 0; n < PARTS; n++) sums[t][row][n] = fused(second[n], other, sums[t][row][n]);
                }
            }
        }
}

/* Some rows with `tiles` tiles from `tile` of a block on, or with those of several blocks. totals: of int4, the sums of each
 * row's inputs of each chunk. sums: (tiles, rows, 16). */
INLINE void add_rows(const Layer *layer, long block, int tile, const int tiles, const float *x, const float *totals,
                     float (*sums)[TALL][16], const int rows, const int format) {
    const long chunks = layer->inputs / 32, groups = chunks / layer->together;
    const char *weights = layer->weights + block * chunks * 2 * tile_bytes(format);
    lanes made[MOST_TILES][TALL][PARTS], own[MOST_TILES][TALL][PARTS];
    for (int t = 0; t < tiles; t++)
        for (int row = 0; row < rows; row++)
            for (int n = 0; n < PARTS; n++) made[t][row][n] = own[t][row][n] = (lanes){0};
    for (long c = 0, left = layer->together, group = 0; c < chunks; c++) {
#pragma GCC unroll 8
        for (int t = 0; t < tiles; t++) {
            const long at = (t / 2 * chunks + c) * 2 + tile + t % 2;
            const char *from = weights + at * tile_bytes(format);
            for (long line = 0; line < tile_bytes(format); line += 64) __builtin_prefetch(from + AHEAD + line);
        }
        const char *from = weights + (c * 2 + tile) * tile_bytes(format);
        const long first = ((block * groups + group) * 2 + tile) * 32; /* of the tile's numbers */
        if (format != INT4 && !are_codes(format)) {
            add_tiles(from, chunks, x + c * 32 * rows, made, tiles, rows, NULL, 0, format);
            continue;
        }
        add_tiles(from, chunks, x + c * 32 * rows, own, tiles, rows, (const float *)layer->scales + first, groups * 64, format);
        if (--left) continue;
        for (int t = 0; t < tiles; t++) {
            const long at = first + t / 2 * groups * 64 + t % 2 * 32;
            for (int n = 0; n < PARTS; n++) {
                lanes step, least = {0}; /* what code 0 of int4 stands for */
                if (format == INT4) {
                    const bf16 *scales = (const bf16 *)layer->scales + at + n * LANES;
                    step = wide_lanes(scales);
                    least = fused(step, spread(-8), wide_lanes(scales + 16));
                } else {
                    step = *(const lanes *)((const float *)layer->scales + at + n * LANES);
                }
                for (int row = 0; row < rows; row++) {
                    if (format == INT4)
                        made[t][row][n] = fused(least, spread(totals[row * groups + group]), made[t][row][n]);
                    made[t][row][n] = fused(step, own[t][row][n], made[t][row][n]);
                    own[t][row][n] = (lanes){0};
                }
            }
        }
        left = layer->together, group++;
    }
    for (int t = 0; t < tiles; t++)
        for (int row = 0; row < rows; row++)
            for (int n = 0; n < PARTS; n++) *(lanes *)(sums[tile + t][row] + n * LANES) = made[t][row][n];
}

/* Sums of some rows, scaled and with the bias; gated: silu(first tile) * second tile. */
static void write_out(const Layer *layer, long block, float (*sums)[TALL][16], void *out, long first, long rows,
                      int is_gated, int is_wide) {
    const long second = layer->is_paired ? layer->outputs / 2 + block * 16 : block * 32 + 16;
    const long columns[2] = {layer->is_paired ? block * 16 : block * 32, second};
    for (long row = 0; row < rows; row++) {
        float made[2][16];
        for (int tile = 0; tile < 2; tile++) {
            const long at = block * 32 + tile * 16;
            for (int lane = 0; lane < 16; lane++) {
                made[tile][lane] = sums[tile][row][lane];
                if (layer->format == INT8) made[tile][lane] *= ((const float *)layer->scales)[at + lane];
                if (layer->bias) made[tile][lane] += layer->bias[at + lane];
            }
        }
        if (is_gated) {
            for (int tile = 0; tile < 2 && !is_wide; tile++)
                for (int lane = 0; lane < 16; lane++) made[tile][lane] = wide(narrow(made[tile][lane]));
            for (int lane = 0; lane < 16; lane += LANES) {
                const lanes gate = *(const lanes *)(made[0] + lane), up = *(const lanes *)(made[1] + lane);
                put_lanes(out, (first + row) * (layer->outputs / 2) + columns[0] + lane, gated(gate, up, is_wide), is_wide);
            }
            continue;
        }
        for (int tile = 0; tile < 2 && columns[tile] < layer->outputs; tile++)
            for (int lane = 0; lane < 16; lane++)
                put_number(out, (first + row) * layer->outputs + columns[tile] + lane, made[tile][lane], is_wide);
    }
}

/* The first row of one of so many groups of about the same size. */
INLINE long first_of(long group, long groups, long rows) { return rows * group / groups; }

/* All rows with a block, or the only one with several. */
INLINE void run_block(const Layer *layer, long block, const int blocks, const float *x, void *out, long rows,
                      const float *totals, int is_gated, int is_wide, const int format) {
    float sums[MOST_TILES][TALL][16];
    const long chunks = layer->inputs / 32;
    if (blocks > 1) {
        add_rows(layer, block, 0, 2 * blocks, x, totals, sums, 1, format);
        for (int at = 0; at < blocks; at++) write_out(layer, block + at, sums + 2 * at, out, 0, 1, is_gated, is_wide);
        return;
    }
    const long groups = (rows + TALL - 1) / TALL;
    for (long group = 0; group < groups; group++) {
        const long row = first_of(group, groups, rows), some = first_of(group + 1, groups, rows) - row;
        const float *from = x + row * layer->inputs, *own = totals ? totals + row * chunks : NULL;
        switch (some) {
#define ROWS(COUNT)                                                                                                     \
    case COUNT:                                                                                                         \
        for (int tile = 0; tile < 2; tile += COUNT <= BOTH ? 2 : 1)                                                     \
            add_rows(layer, block, tile, COUNT <= BOTH ? 2 : 1, from, own, sums, COUNT, format);                        \
        break;
            ROWS(1) ROWS(2)
#if HAS_MANY
            ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#endif
#if LANES == 16
            ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#endif
        }
        write_out(layer, block, sums, out, row, some, is_gated, is_wide);
    }
}

/* The rows as floats, those that are taken at once side by side: (inputs, rows) of each set; and of int4 behind all of
 * them the sum of each row's inputs of each chunk, (rows, chunks). NULL without memory. */
static float *opened_rows(const void *x, long rows, long inputs, int is_wide, int has_steps, int threads) {
    const long chunks = inputs / 32, sets = (rows + TALL - 1) / TALL;
    float *all = aligned_alloc(64, (rows * (inputs + has_steps * chunks) * sizeof(float) + 127) / 64 * 64);
    if (!all) return NULL;
#pragma omp parallel for num_threads(threads) if (rows * inputs > 65536)
    for (long set = 0; set < sets; set++) {
        const long first = first_of(set, sets, rows), some = first_of(set + 1, sets, rows) - first;
        for (long row = first; row < first + some; row++) {
            float *to = all + first * inputs + row - first, *totals = all + rows * inputs + row * chunks;
            if (is_wide)
                for (long d = 0; d < inputs; d++) to[d * some] = ((const float *)x)[row * inputs + d];
            else
                for (long d = 0; d < inputs; d++) to[d * some] = wide(((const bf16 *)x)[row * inputs + d]);
            for (long c = 0; has_steps && c < chunks; c++) {
                float total = 0;
                for (long d = c * 32; d < c * 32 + 32; d++) total += to[d * some];
                totals[c] = total;
            }
        }
    }
    return all;
}

/* out (rows, outputs, or half of them when gated) = x (rows, inputs) W^T, scaled, + bias; is_wide: x and out are float32,
 * not bfloat16. Returns 1 when there was no memory. outputs is a multiple of 16, inputs of 32, and of groups of `together` times
 * 32. */
int danlu_float_product(const void *x, long rows, const char *weights, const void *scales, const float *bias, void *out,
                        long outputs, long inputs, long together, int format, int is_paired, int is_gated, int is_wide,
                        int threads) {
    const Layer layer = {weights, scales, bias, outputs, inputs, together, is_paired, format};
    const long blocks = (outputs + 31) / 32;
    float *wide_rows = opened_rows(x, rows, inputs, is_wide, format == INT4, threads);
    if (!wide_rows) return 1;
    const float *totals = format == INT4 ? wide_rows + rows * inputs : NULL;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long part = 0; part < threads; part++)
        for (long block = blocks * part / threads, last = blocks * (part + 1) / threads; block < last;) {
            const int is_several = AT_ONCE > 1 && rows == 1 && last - block >= AT_ONCE;
#define CASE(FORMAT)                                                                                                    \
    if (format == FORMAT && is_several)                                                                                 \
        run_block(&layer, block, AT_ONCE, wide_rows, out, rows, totals, is_gated, is_wide, FORMAT);                     \
    else if (format == FORMAT)                                                                                          \
        run_block(&layer, block, 1, wide_rows, out, rows, totals, is_gated, is_wide, FORMAT);
            CASE(BF16) CASE(INT8) CASE(INT4) CASE(FLOAT32) CASE(CODES4) CASE(CODES8)
            block += is_several ? AT_ONCE : 1;
        }
    free(wide_rows);
    return 0;
}

/* The codes of one input and LANES outputs of a tile. In pairs they lie as for blocks.c, those of 8 bits as code - 128. */
INLINE ints codes_at(const char *tile, int input, int n, const int format, const int is_in_pairs) {
    const int above = format == CODES4 ? input / 16 : 0, place = format == CODES4 ? input % 16 : input;
    ints codes;
    if (is_in_pairs) {
        const ints both = __builtin_convertvector(*(const ushorts *)(tile + place / 2 * 32 + n * 2 * LANES), ints);
        codes = input % 2 ? (ints)(both >> 8) : (ints)(both & 255);
    } else {
        codes = codes_of(tile + place * 16 + n * LANES, 0);
    }
    if (format == CODES8) return is_in_pairs ? (ints)(codes ^ 128) : codes;
    return above ? (ints)(codes >> 4) : (ints)(codes & 15);
}

/* What the codes of a tile stand for, (code - zero) * scale, in 16 rows from `to` on, of which there are `rows`. */
INLINE void write_whole(const char *tile, const float *numbers, char *to, long row_bytes, long rows, int is_short,
                        const int format, const int is_in_pairs) {
    for (int n = 0; n < PARTS; n++) {
        const lanes scale = *(const lanes *)(numbers + n * LANES), zero = *(const lanes *)(numbers + 16 + n * LANES);
        for (int first = 0; first < 32; first += LANES) {
            lanes w[LANES];
            for (int at = 0; at < LANES; at++)
                w[at] = (floats_of(codes_at(tile, first + at, n, format, is_in_pairs)) - zero) * scale;
            transpose(w);
            for (int lane = 0; lane < LANES && n * LANES + lane < rows; lane++) {
                char *row = to + (n * LANES + lane) * row_bytes;
                const ints bits = (ints)w[lane];
                if (is_short) /* to the nearest, ties to even; weights are finite */
                    *(ushorts *)((bf16 *)row + first) =
                        __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, ushorts);
                else
                    *(lanes *)((float *)row + first) = w[lane];
            }
        }
    }
}

/* The weights themselves, out (outputs, inputs), as float32 or rounded to bfloat16. */
void danlu_whole(const char *weights, const float *numbers, void *out, long outputs, long inputs, long together, int format,
                 int is_in_pairs, int is_short, int threads) {
    const long chunks = inputs / 32, groups = chunks / together, row_bytes = inputs * (is_short ? 2 : 4);
#pragma omp parallel for num_threads(threads) if (outputs * inputs > 65536)
    for (long tile = 0; tile < (outputs + 15) / 16; tile++)
        for (long c = 0; c < chunks; c++) {
            const char *from = weights + ((tile / 2 * chunks + c) * 2 + tile % 2) * tile_bytes(format);
            const float *own = numbers + ((tile / 2 * groups + c / together) * 2 + tile % 2) * 32;
            char *to = (char *)out + tile * 16 * row_bytes + c * row_bytes / chunks;
#define WHOLE(FORMAT, PAIRS)                                                                                            \
    if (format == FORMAT && is_in_pairs == PAIRS)                                                                       \
        write_whole(from, own, to, row_bytes, outputs - tile * 16, is_short, FORMAT, PAIRS);
            WHOLE(CODES4, 0) WHOLE(CODES4, 1) WHOLE(CODES8, 0) WHOLE(CODES8, 1)
        }
}

/* out = silu(gate) * up, as a gated product has it, where something was added to the product first: (rows, dim), rows of gate
 * and of up `stride` apart; bfloat16, or float32 where is_wide. */
void danlu_swiglu(const void *gate, const void *up, long stride, void *out, long rows, long dim, int is_wide, int threads) {
    const long whole = dim / LANES * LANES;
#pragma omp parallel for num_threads(threads) if (rows * dim > 16384)
    for (long row = 0; row < rows; row++) {
        const long from = row * stride, to = row * dim;
        for (long d = 0; d < whole; d += LANES)
            put_lanes(out, to + d, gated(lanes_at(gate, from + d, is_wide), lanes_at(up, from + d, is_wide), is_wide), is_wide);
        if (whole == dim) continue;
        float rest[3][LANES] = {0};
        const long size = is_wide ? sizeof(float) : sizeof(bf16);
        for (long d = whole; d < dim; d++) {
            rest[0][d - whole] = number(gate, from + d, is_wide);
            rest[1][d - whole] = number(up, from + d, is_wide);
        }
        put_lanes(rest[2], 0, gated(*(lanes *)rest[0], *(lanes *)rest[1], is_wide), is_wide);
        memcpy((char *)out + (to + whole) * size, rest[2], (dim - whole) * size);
    }
}
