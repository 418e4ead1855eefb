/* Kernels called one behind the other, which Python would take longer to call than they take. calls.py writes the list. */
#include "numbers.h"

enum { PRODUCT, ADD_NORM, NORM_HEADS, ROTATE, SWIGLU, ADAPT };

typedef int Product(const bf16 *x, long rows, const void *weights, const void *scales, const float *bias, bf16 *out,
                    long outputs, long inputs, long together, int format, int is_paired, int is_gated, int way, int threads);
typedef void AddNorm(const bf16 *x, const bf16 *y, bf16 *sum, const float *weight, bf16 *out, long rows, long dim, float eps,
                     int threads);
typedef void NormHeads(const bf16 *x, long stride, long apart, const float *weight, bf16 *out, long out_stride, long tokens,
                       long heads, long dim, float eps, int threads);
typedef void Rotate(const bf16 *x, long stride, const bf16 *cosine, const bf16 *sine, bf16 *out, long tokens, long heads,
                    long dim, long turned, int in_steps, int threads);
typedef void Swiglu(const void *gate, const void *up, long stride, void *out, long rows, long dim, int is_wide, int threads);
typedef int Adapt(const void *x, long x_stride, const void *adapters, const int64_t *counts, long held, const int64_t *rows,
                  void *out, long stride, long inputs, int is_wide, int has_wide, int threads);

/* One of them; what a kernel does not have is 0. x is what is given, where it is NULL. */
typedef struct {
    long kind;
    const void *function, *x, *y, *weights, *scales, *bias;
    void *sum, *out;
    long outputs, inputs, together, format, is_paired, is_gated, way, stride, out_stride, heads, dim, turns, held;
    double eps;
} Call;

/* All of them, over the rows of `tokens` tokens; counts and owned: whose these are. Returns 1 when there was no memory. */
int danlu_calls(const Call *calls, long count, const bf16 *given, const bf16 *cosine, const bf16 *sine, long turned,
                const int64_t *counts, const int64_t *owned, long tokens, int threads) {
    const int64_t every = tokens;
    int failed = 0;
    for (const Call *one = calls; one < calls + count; one++) {
        const bf16 *x = one->x ? one->x : given;
        const void *kernel = one->function;
        switch (one->kind) {
        case PRODUCT:
            failed |= ((Product *)kernel)(x, tokens, one->weights, one->scales, one->bias, one->out, one->outputs, one->inputs,
                                          one->together, one->format, one->is_paired, one->is_gated, one->way, threads);
            break;
        case ADD_NORM:
            ((AddNorm *)kernel)(x, one->y, one->sum, one->weights, one->out, tokens, one->dim, one->eps, threads);
            break;
        case NORM_HEADS:
            ((NormHeads *)kernel)(x, one->stride, one->dim, one->weights, one->out, one->out_stride, tokens, one->heads,
                                  one->dim, one->eps, threads);
            break;
        case ROTATE:
            ((Rotate *)kernel)(x, one->stride, cosine, sine, one->out, tokens, one->heads, one->dim, one->turns ? turned : 0,
                               0, threads);
            break;
        case SWIGLU:
            ((Swiglu *)kernel)(x, one->y, one->stride, one->out, tokens, one->dim, 0, threads);
            break;
        case ADAPT: /* of all tokens where scales has their numbers */
            failed |= ((Adapt *)kernel)(x, one->inputs, one->weights, one->scales ? &every : counts, one->held,
                                        one->scales ? one->scales : owned, one->out, one->out_stride, one->inputs, 0,
                                        one->format, threads);
        }
    }
    return failed;
}
