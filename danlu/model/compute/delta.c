/* Linear attention by the gated delta rule (Yang et al. 2024, arXiv:2412.06464), token by token, with float32 numbers.
 *
 * A token's queries, keys and values are sums over the last few tokens; the state of a head forgets, learns what it lacked of
 * the value at the key, and answers the query. Columns of a state know nothing of each other: a strip of them stays in the
 * first cache while a text's tokens pass. All sums are in one order, however many tokens and texts there are: an answer is the
 * same, bit for bit, whatever else is read, and however a text is cut into pieces. */
#include "lanes.h"

#define STRIP 32                /* columns of a state at a time */
#define PARTS (STRIP / LANES)   /* vectors of one */
#define SUMS 4                  /* of a column, of every fourth key each: a sum alone would wait for itself */
#define TOKENS 64               /* of each text at a time, so that what lies between is small */

typedef struct {
    const float *kernel, *decay, *bias, *norm; /* (size, channels), (value heads,) twice, (value dim,) */
    long size, key_heads, value_heads, key_dim, value_dim;
    double eps;
} Layer;

/* What goes in: (texts, tokens, columns), a text's and a token's numbers so far apart. Columns: queries, keys, values, gates
 * of the answer, and for each value head how much is written and how much is forgotten. */
typedef struct {
    const void *from;
    long text, token;
    int is_wide;
} Given;

INLINE long channels_of(const Layer *own) { return 2 * own->key_heads * own->key_dim + own->value_heads * own->value_dim; }

INLINE const void *at_token(const Given *given, long text, long token) {
    return (const char *)given->from + (text * given->text + token * given->token) * (given->is_wide ? 4 : 2);
}

INLINE float sigmoid(float x) {
    const float small = exponential(-fabsf(x));
    return (x < 0 ? small : 1.0f) / (1.0f + small);
}

/* Queries, keys and values of a token: each channel over the last `size` tokens, then silu. Before the text's first token
 * comes its past, (size - 1, channels). */
INLINE void convolve(const Layer *own, const Given *given, long text, long token, const float *past, float *out) {
    const long channels = channels_of(own), back = own->size - 1;
    const int is_wide = given->is_wide;
    long c = 0;
    for (; c + LANES <= channels; c += LANES) {
        lanes sum = {0};
        for (long j = 0; j <= back; j++) {
            const long at = token + j - back;
            const lanes x = at < 0 ? *(const lanes *)(past + (at + back) * channels + c) : lanes_at(at_token(given, text, at), c, is_wide);
            sum = fused(x, *(const lanes *)(own->kernel + j * channels + c), sum);
        }
        *(lanes *)(out + c) = silu(sum);
    }
    for (; c < channels; c++) {
        float sum = 0;
        for (long j = 0; j <= back; j++) {
            const long at = token + j - back;
            sum += own->kernel[j * channels + c] *
                   (at < 0 ? past[(at + back) * channels + c] : number(at_token(given, text, at), c, is_wide));
        }
        out[c] = sum * sigmoid(sum);
    }
}

INLINE float squares(const float *x, long dim) {
    lanes sums = {0};
    long d = 0;
    for (; d + LANES <= dim; d += LANES) sums = fused(*(const lanes *)(x + d), *(const lanes *)(x + d), sums);
    float sum = total(sums);
    for (; d < dim; d++) sum += x[d] * x[d];
    return sum;
}

/* A vector of length `length`. */
INLINE void set_length(float *x, long dim, float length) {
    const float scale = length / sqrtf(squares(x, dim) + 1e-6f);
    for (long d = 0; d < dim; d++) x[d] *= scale;
}

/* One strip of a head's state over some tokens of a text. made: queries, keys and values; answers: (tokens, all heads' dim). */
static void go_through(const Layer *own, const Given *given, long text, long start, long count, long head, long column,
                       const float *made, float *state, int is_fresh, float *answers) {
    const long keys = own->key_dim, channels = channels_of(own), values = own->value_heads * own->value_dim;
    const long served = own->value_heads / own->key_heads, key_head = head / served;
    const long filled = own->value_dim - column < STRIP ? own->value_dim - column : STRIP;
    float strip[keys][STRIP] __attribute__((aligned(64)));
    float *held = state + head * keys * own->value_dim + column;
    memset(strip, 0, sizeof strip);
    for (long i = 0; i < keys && !is_fresh; i++) memcpy(strip[i], held + i * own->value_dim, filled * sizeof(float));
    for (long t = 0; t < count; t++, made += channels, answers += values) {
        const float *q = made + key_head * keys, *k = q + own->key_heads * keys;
        const float *v = made + 2 * own->key_heads * keys + head * own->value_dim + column;
        const void *numbers = at_token(given, text, start + t);
        const float write = sigmoid(number(numbers, channels + values + head, given->is_wide));
        const float forget = number(numbers, channels + values + own->value_heads + head, given->is_wide) + own->bias[head];
        const float softly = forget > 20 ? forget : log1pf(expf(forget));
        const lanes keep = spread(expf(own->decay[head] * softly));
        float value[STRIP] __attribute__((aligned(64))) = {0};
        memcpy(value, v, filled * sizeof(float));
        lanes known[SUMS][PARTS], answer[SUMS][PARTS], lacking[PARTS];
        memset(known, 0, sizeof known);
        memset(answer, 0, sizeof answer);
        long i = 0;
#define REMEMBER(S)                                                                                                      \
    for (int n = 0; n < PARTS; n++) {                                                                                   \
        lanes *one = (lanes *)(strip[i + S] + n * LANES);                                                               \
        *one *= keep;                                                                                                   \
        known[S][n] = fused(*one, spread(k[i + S]), known[S][n]);                                                       \
    }
        for (; i + SUMS <= keys; i += SUMS) { REMEMBER(0) REMEMBER(1) REMEMBER(2) REMEMBER(3) }
        for (; i < keys; i++) { REMEMBER(0) }
        for (int n = 0; n < PARTS; n++) {
            const lanes sum = (known[0][n] + known[1][n]) + (known[2][n] + known[3][n]);
            lacking[n] = (*(lanes *)(value + n * LANES) - sum) * spread(write);
        }
#define LEARN(S)                                                                                                         \
    for (int n = 0; n < PARTS; n++) {                                                                                   \
        lanes *one = (lanes *)(strip[i + S] + n * LANES);                                                               \
        *one = fused(spread(k[i + S]), lacking[n], *one);                                                               \
        answer[S][n] = fused(*one, spread(q[i + S]), answer[S][n]);                                                     \
    }
        for (i = 0; i + SUMS <= keys; i += SUMS) { LEARN(0) LEARN(1) LEARN(2) LEARN(3) }
        for (; i < keys; i++) { LEARN(0) }
        for (int n = 0; n < PARTS; n++)
            *(lanes *)(value + n * LANES) = (answer[0][n] + answer[1][n]) + (answer[2][n] + answer[3][n]);
        memcpy(answers + head * own->value_dim + column, value, filled * sizeof(float));
    }
    for (long i = 0; i < keys; i++) memcpy(held + i * own->value_dim, strip[i], filled * sizeof(float));
}

/* RMS norm of a head's answer, times its weight and silu of its gate. */
INLINE void norm(const Layer *own, const float *answer, const void *gates, long gate, void *out, long at, int is_wide) {
    const long dim = own->value_dim;
    const float scale = 1 / sqrtf(squares(answer, dim) / dim + (float)own->eps);
    for (long d = 0; d < dim; d++) {
        const float x = number(gates, gate + d, is_wide);
        put_number(out, at + d, answer[d] * scale * own->norm[d] * x * sigmoid(x), is_wide);
    }
}

/* The last `size` inputs of each channel, of what was there and came in: (channels, size). */
INLINE void keep_inputs(const Layer *own, const Given *given, long text, long tokens, const float *past, void *conv) {
    const long channels = channels_of(own), back = own->size - 1;
    for (long j = 0; j < own->size; j++) {
        const long at = tokens + j - own->size;
        for (long c = 0; c < channels; c++) {
            const float x = at >= 0 ? number(at_token(given, text, at), c, given->is_wide)
                                    : at + back >= 0 ? past[(at + back) * channels + c] : 0;
            put_number(conv, c * own->size + j, x, given->is_wide);
        }
    }
}

/* out (texts, tokens, value heads * value dim). conv: of each text (channels, size), the inputs that it saw last, and state:
 * (value heads, key dim, value dim), so far apart from text to text; both are read unless is_fresh, and written. Returns 1
 * when there was no memory. */
int danlu_delta(const Layer *own, const void *from, long text_stride, long token_stride, long texts, long tokens, void *conv,
                long conv_stride, float *state, long state_stride, int is_fresh, void *out, int is_wide, int threads) {
    const Given given = {from, text_stride, token_stride, is_wide};
    const long channels = channels_of(own), values = own->value_heads * own->value_dim, back = own->size - 1;
    const long strips = (own->value_dim + STRIP - 1) / STRIP, most = tokens < TOKENS ? tokens : TOKENS;
    float *past = calloc(texts * back * channels + 1, sizeof(float)), *made = malloc(texts * most * channels * sizeof(float));
    float *answers = malloc(texts * most * values * sizeof(float));
    const int failed = !past || !made || !answers;
#pragma omp parallel num_threads(threads) if (!failed)
    if (!failed) {
#pragma omp for
        for (long text = 0; text < (is_fresh ? 0 : texts); text++) {
            const void *kept = (char *)conv + text * conv_stride * (is_wide ? 4 : 2);
            for (long c = 0; c < channels; c++)
                for (long j = 0; j < back; j++)
                    past[(text * back + j) * channels + c] = number(kept, c * own->size + j + 1, is_wide);
        }
        for (long start = 0; start < tokens; start += TOKENS) {
            const long count = tokens - start < TOKENS ? tokens - start : TOKENS;
#pragma omp for
            for (long at = 0; at < texts * count; at++) {
                const long text = at / count;
                float *to = made + at * channels;
                convolve(own, &given, text, start + at % count, past + text * back * channels, to);
                for (long head = 0; head < 2 * own->key_heads; head++)
                    set_length(to + head * own->key_dim, own->key_dim, head < own->key_heads ? 1 / sqrtf(own->key_dim) : 1);
            }
#pragma omp for
            for (long at = 0; at < texts * own->value_heads * strips; at++) {
                const long text = at / (own->value_heads * strips), head = at / strips % own->value_heads;
                go_through(own, &given, text, start, count, head, at % strips * STRIP, made + text * count * channels,
                           state + text * state_stride, is_fresh && !start, answers + text * count * values);
            }
#pragma omp for
            for (long at = 0; at < texts * count * own->value_heads; at++) {
                const long row = at / own->value_heads, head = at % own->value_heads, text = row / count;
                const long token = start + row % count, dim = own->value_dim;
                norm(own, answers + row * values + head * dim, at_token(&given, text, token), channels + head * dim, out,
                     (text * tokens + token) * values + head * dim, is_wide);
            }
        }
#pragma omp for
        for (long text = 0; text < texts; text++)
            keep_inputs(own, &given, text, tokens, past + text * back * channels,
                        (char *)conv + text * conv_stride * (is_wide ? 4 : 2));
    }
    free(past);
    free(made);
    free(answers);
    return failed;
}
