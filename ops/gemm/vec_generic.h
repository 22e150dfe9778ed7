/* SPDX-License-Identifier: Apache-2.0
 * vec_generic.h - the vector vocabulary of the kernel templates for any processor: 4 floats in the vector extension of GCC and
 * Clang, which becomes SSE2, NEON or scalar code. Products are rounded before they are added: no fused multiply-add is assumed. */
#ifndef LATH_GEMM_VEC_GENERIC_H
#define LATH_GEMM_VEC_GENERIC_H

#include <stdint.h>
#include <string.h>

typedef float vec __attribute__((vector_size(16)));
#define LANES 4
#define ISA_NAME(x) x##_generic

#define ROWS_1 4
#define ROWS_2 4
#define ROWS_3 4
#define ROWS_4 3
#define DOT_ROWS 2

static inline vec v_zero(void) { return (vec){0.f, 0.f, 0.f, 0.f}; }
static inline vec v_set(float f) { return (vec){f, f, f, f}; }
static inline vec v_load(const float *p) {
  vec a;
  memcpy(&a, p, sizeof a);
  return a;
}
static inline vec v_load_n(const float *p, int64_t n) { /* n >= 1; rest 0 */
  vec a = v_zero();
  for (int64_t i = 0; i < LANES && i < n; i++) a[i] = p[i];
  return a;
}
static inline void v_store(float *p, vec a) { memcpy(p, &a, sizeof a); }
static inline void v_store_n(float *p, vec a, int64_t n) { /* n >= 1 */
  for (int64_t i = 0; i < LANES && i < n; i++) p[i] = a[i];
}
static inline vec v_add(vec a, vec b) { return a + b; }
static inline vec v_fma(vec a, vec b, vec c) { return a * b + c; }
static inline vec v_sub(vec a, vec b) { return a - b; }
static inline vec v_mul(vec a, vec b) { return a * b; }
static inline vec v_div(vec a, vec b) { return a / b; }

typedef uint32_t v_bits __attribute__((vector_size(16)));
static inline vec v_select(v_bits where, vec yes, vec no) { return (vec)(((v_bits)yes & where) | ((v_bits)no & ~where)); }
static inline vec v_if_less(vec a, vec b, vec yes, vec no) { return v_select((v_bits)(a < b), yes, no); } /* a < b ? yes : no */
static inline vec v_min(vec a, vec b) { return v_if_less(a, b, a, b); } /* b if either is NaN */
static inline vec v_max(vec a, vec b) { return v_if_less(b, a, a, b); }
static inline vec v_abs(vec a) { return (vec)((v_bits)a & 0x7fffffffu); }
static inline vec v_sign_of(vec a, vec sign) { return (vec)((v_bits)a | ((v_bits)sign & 0x80000000u)); } /* a >= 0 */
static inline vec v_power_of_2(vec shifted) {
  return (vec)(((v_bits)shifted << 23) + (127u << 23));
} /* 2^n from n + 1.5 2^23 */

static inline float v_sum(vec a) { return (a[0] + a[1]) + (a[2] + a[3]); }
static inline void v_sum4(float *out, vec a, vec b, vec c, vec d) {
  out[0] = v_sum(a), out[1] = v_sum(b), out[2] = v_sum(c), out[3] = v_sum(d);
}

static inline void v_transpose(vec r[LANES]) {
  const vec a = r[0], b = r[1], c = r[2], d = r[3];
  for (int i = 0; i < LANES; i++) r[i] = (vec){a[i], b[i], c[i], d[i]};
}

/* Lanes lo <= i < hi of p, zero elsewhere; any lo and hi. */
static inline vec v_load_between(const float *p, int64_t lo, int64_t hi) {
  vec a = v_zero();
  for (int64_t i = 0; i < LANES; i++)
    if (lo <= i && i < hi) a[i] = p[i];
  return a;
}

/* Lanes of p whose bit is set, zero elsewhere. */
static inline vec v_load_bits(const float *p, uint32_t bits) {
  vec a = v_zero();
  for (int i = 0; i < LANES; i++)
    if (bits >> i & 1u) a[i] = p[i];
  return a;
}

/* Lanes 0 and 2 of a, then of b. */
static inline vec v_even(vec a, vec b) { return (vec){a[0], a[2], b[0], b[2]}; }

#endif
