/* Products with weights in few bits by groups, and those weights whole again: grouped_linear.py says which.
 *
 * Codes lie as the kernel reads them. Of 4 bits, 32 inputs are 16 bytes: the first 16 in the low halves, the others in
 * the high ones. Of 8 bits, a byte is an input. A weight is (code - zero) * scale in float32, with its group's numbers;
 * a group is a multiple of 32 inputs. Plain C that a compiler vectorizes; threads are those of torch's OpenMP.
 */
#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define CHUNK 32
#define LANES 16
#define ROWS 4 /* of x, for which a code is taken apart once */
#define SIDE_BY_SIDE 4 /* outputs whose sums do not wait for each other; of two rows or fewer, else half as many */

/* Vectors of gcc and clang, which make of them what the processor has. */
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t numbers __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t shorts __attribute__((vector_size(2 * LANES), aligned(2)));
typedef uint8_t bytes __attribute__((vector_size(LANES)));

/* gcc 12 widens bytes in several steps where it is not told of the one that there is. */
INLINE floats floats_of(bytes codes) {
#if defined(__AVX512F__)
    return (floats)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)codes));
#elif defined(__AVX2__)
    const __m128i all = (__m128i)codes;
    const __m256 halves[2] = {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(all)),
                              _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(all, 8)))};
    floats wide;
    __builtin_memcpy(&wide, halves, sizeof wide);
    return wide;
#else
    return __builtin_convertvector(__builtin_convertvector(codes, numbers), floats);
#endif
}

/* a b + c: rounded once where the processor can. */
INLINE floats fused(floats a, floats b, floats c) {
#if defined(__AVX512F__)
    return (floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    __m256 x[3][2];
    __builtin_memcpy(x[0], &a, sizeof a);
    __builtin_memcpy(x[1], &b, sizeof b);
    __builtin_memcpy(x[2], &c, sizeof c);
    for (int half = 0; half < 2; half++) x[2][half] = _mm256_fmadd_ps(x[0][half], x[1][half], x[2][half]);
    __builtin_memcpy(&c, x[2], sizeof c);
    return c;
#else
    return a * b + c;
#endif
}

/* In halves, always the same ones. */
INLINE float total(floats x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#endif
    float parts[LANES];
    __builtin_memcpy(parts, &x, sizeof x);
    for (int width = LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; lane++) parts[lane] += parts[lane + width];
    return parts[0];
}

/* To the nearest, ties to even; weights are finite. */
INLINE shorts narrow(floats x) {
    words bits = (words)x;
    return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, shorts);
}

/* 32 codes less their zero, in float32: the first 16 and the others. */
INLINE void apart(const uint8_t *codes, int bits, float zero, floats *low, floats *high) {
    bytes first, second;
    __builtin_memcpy(&first, codes, LANES);
    if (bits == 4) {
        second = first >> 4;
        first &= 15;
    } else {
        __builtin_memcpy(&second, codes + LANES, LANES);
    }
    *low = floats_of(first) - zero;
    *high = floats_of(second) - zero;
}

typedef struct {
    const float *x;
    const uint8_t *codes;
    const float *scales, *zeros, *bias;
    float *out;
    long outputs, inputs, group;
} Job;

/* `count` outputs from `output` on, of `rows` rows of x from `row` on: each is summed alone, in the order of its
 * inputs, and is the same whatever lies beside it. */
INLINE void some(const Job *job, long output, long row, const int count, const int rows, const int bits) {
    const long inputs = job->inputs, groups = inputs / job->group, step = bits == 4 ? CHUNK / 2 : CHUNK;
    const long stride = inputs / CHUNK * step;
    const uint8_t *codes = job->codes + output * stride;
    const float *scales = job->scales + output * groups, *zeros = job->zeros + output * groups;
    floats sums[ROWS][SIDE_BY_SIDE];
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < count; o++) sums[r][o] = (floats){0};
    for (long first = 0, number = 0; first < inputs; first += job->group, number++) {
        floats parts[ROWS][SIDE_BY_SIDE];
        for (int r = 0; r < rows; r++)
            for (int o = 0; o < count; o++) parts[r][o] = (floats){0};
        for (long at = first; at < first + job->group; at += CHUNK)
            for (int o = 0; o < count; o++) {
                floats low, high;
                apart(codes + o * stride + at / CHUNK * step, bits, zeros[o * groups + number], &low, &high);
                for (int r = 0; r < rows; r++) {
                    const float *from = job->x + (row + r) * inputs + at;
                    parts[r][o] = fused(low, *(const floats *)from, parts[r][o]);
                    parts[r][o] = fused(high, *(const floats *)(from + LANES), parts[r][o]);
                }
            }
        for (int r = 0; r < rows; r++)
            for (int o = 0; o < count; o++)
                sums[r][o] = fused(parts[r][o], (floats){0} + scales[o * groups + number], sums[r][o]);
    }
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < count; o++)
            job->out[(row + r) * job->outputs + output + o] =
                total(sums[r][o]) + (job->bias ? job->bias[output + o] : 0.0f);
}

/* Each in a function of its own, which keeps its sums in registers. */
#define OWN(COUNT, RCOUNT, BITS)                                                                                       \
    static __attribute__((noinline)) void some_##COUNT##_##RCOUNT##_##BITS(const Job *job, long output, long row) {    \
        some(job, output, row, COUNT, RCOUNT, BITS);                                                                   \
    }
#define OF_BITS(BITS)                                                                                                  \
    OWN(4, 1, BITS) OWN(4, 2, BITS) OWN(2, 3, BITS) OWN(2, 4, BITS) OWN(1, 1, BITS) OWN(1, 2, BITS) OWN(1, 3, BITS)    \
    OWN(1, 4, BITS)
OF_BITS(4)
OF_BITS(8)
typedef void Some(const Job *job, long output, long row);
/* By bits (4, 8), whether many outputs are taken together, and rows. */
static Some *const all[2][2][ROWS] = {
    {{some_1_1_4, some_1_2_4, some_1_3_4, some_1_4_4}, {some_4_1_4, some_4_2_4, some_2_3_4, some_2_4_4}},
    {{some_1_1_8, some_1_2_8, some_1_3_8, some_1_4_8}, {some_4_1_8, some_4_2_8, some_2_3_8, some_2_4_8}},
};

/* out = x W^T + bias: x (rows, inputs), codes (outputs, ...), scales and zeros (outputs, inputs / group). */
void danlu_grouped(const float *x, const uint8_t *codes, const float *scales, const float *zeros, const float *bias,
                   float *out, long rows, long outputs, long inputs, long group, int bits, int threads) {
    const Job job = {x, codes, scales, zeros, bias, out, outputs, inputs, group};
#pragma omp parallel for num_threads(threads) if (outputs * inputs > 65536)
    for (long first = 0; first < outputs; first += SIDE_BY_SIDE) {
        const long end = first + SIDE_BY_SIDE < outputs ? first + SIDE_BY_SIDE : outputs;
        for (long row = 0; row < rows; row += ROWS) {
            const int left = rows - row < ROWS ? (int)(rows - row) : ROWS, together = left > 2 ? 2 : SIDE_BY_SIDE;
            for (long output = first; output < end;) {
                const int is_many = end - output >= together;
                all[bits == 8][is_many][left - 1](&job, output, row);
                output += is_many ? together : 1;
            }
        }
    }
}

/* W itself (outputs, inputs): as float32, or rounded to bfloat16. */
void danlu_grouped_whole(const uint8_t *codes, const float *scales, const float *zeros, void *out, long outputs,
                         long inputs, long group, int bits, int is_short, int threads) {
    long step = bits == 4 ? CHUNK / 2 : CHUNK, groups = inputs / group;
#pragma omp parallel for num_threads(threads) if (outputs * inputs > 65536)
    for (long o = 0; o < outputs; o++) {
        for (long at = 0; at < inputs; at += CHUNK) {
            floats w[2];
            float scale = scales[o * groups + at / group];
            apart(codes + (o * inputs + at) / CHUNK * step, bits, zeros[o * groups + at / group], w, w + 1);
            w[0] *= scale;
            w[1] *= scale;
            if (is_short) {
                shorts *to = (shorts *)((uint16_t *)out + o * inputs + at);
                to[0] = narrow(w[0]);
                to[1] = narrow(w[1]);
            } else {
                floats *to = (floats *)((float *)out + o * inputs + at);
                to[0] = w[0];
                to[1] = w[1];
            }
        }
    }
}
