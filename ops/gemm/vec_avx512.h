/* SPDX-License-Identifier: Apache-2.0
 * vec_avx512.h - the vector vocabulary of the kernel templates, AVX-512 (F, DQ): 16 floats, 32 registers. */
#ifndef LATH_GEMM_VEC_AVX512_H
#define LATH_GEMM_VEC_AVX512_H

#include <immintrin.h>
#include <stdint.h>

typedef __m512 vec;
#define LANES 16
#define ISA_NAME(x) x##_avx512

/* Rows of a register tile by its width in vectors: accumulators + one row of B + one broadcast fit 32 registers. */
#define ROWS_1 16
#define ROWS_2 14
#define ROWS_3 8
#define ROWS_4 6
/* Rows of A in a tile of inner products. */
#define DOT_ROWS 4

static inline __mmask16 v_mask(int64_t n) { return n >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << n) - 1u); }
static inline vec v_zero(void) { return _mm512_setzero_ps(); }
static inline vec v_set(float f) { return _mm512_set1_ps(f); }
static inline vec v_load(const float *p) { return _mm512_loadu_ps(p); }
static inline vec v_load_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(v_mask(n), p); } /* n >= 1; rest 0 */
static inline void v_store(float *p, vec a) { _mm512_storeu_ps(p, a); }
static inline void v_store_n(float *p, vec a, int64_t n) { _mm512_mask_storeu_ps(p, v_mask(n), a); } /* n >= 1 */
static inline vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
static inline vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); } /* a b + c */
static inline vec v_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
static inline vec v_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
static inline vec v_div(vec a, vec b) { return _mm512_div_ps(a, b); }
static inline vec v_min(vec a, vec b) { return _mm512_min_ps(a, b); } /* a < b ? a : b, so b if either is NaN */
static inline vec v_max(vec a, vec b) { return _mm512_max_ps(a, b); } /* a > b ? a : b */
static inline vec v_abs(vec a) { return _mm512_abs_ps(a); }
static inline vec v_sign_of(vec a, vec sign) { /* a >= 0 with the sign of the other */
  return _mm512_or_ps(a, _mm512_and_ps(sign, _mm512_set1_ps(-0.f)));
}
static inline vec v_if_less(vec a, vec b, vec yes, vec no) { /* a < b ? yes : no */
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
static inline vec v_power_of_2(vec shifted) { /* 2^n from n + 1.5 2^23, n from -126 to 127 */
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(shifted), 23), _mm512_set1_epi32(127 << 23)));
}

/* out[0..3] = the sums of the lanes of a, b, c, d. */
static inline void v_sum4(float *out, vec a, vec b, vec c, vec d) {
  const vec ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const vec cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d ab64 = _mm512_castps_pd(ab), cd64 = _mm512_castps_pd(cd);
  const vec lanes =
      _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab64, cd64)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab64, cd64)));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

static inline void v_transpose_128(vec r[LANES]) {
  for (int i = 0; i < 16; i += 4) {
    const vec t0 = _mm512_unpacklo_ps(r[i], r[i + 1]), t1 = _mm512_unpackhi_ps(r[i], r[i + 1]);
    const vec t2 = _mm512_unpacklo_ps(r[i + 2], r[i + 3]), t3 = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
    r[i] = _mm512_shuffle_ps(t0, t2, 0x44);
    r[i + 1] = _mm512_shuffle_ps(t0, t2, 0xee);
    r[i + 2] = _mm512_shuffle_ps(t1, t3, 0x44);
    r[i + 3] = _mm512_shuffle_ps(t1, t3, 0xee);
  }
}

/* r[i][j] <-> r[j][i]: 4x4 blocks inside the 128-bit quarters, then the quarters among themselves. */
static inline void v_transpose(vec r[LANES]) {
  v_transpose_128(r);
  for (int i = 0; i < 4; i++) {
    const vec a = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88), b = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    const vec c = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88), d = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    r[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    r[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
    r[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}

/* Lanes lo <= i < hi of p, zero elsewhere; any lo and hi. */
static inline vec v_load_between(const float *p, int64_t lo, int64_t hi) {
  const __mmask16 below = lo > 0 ? v_mask(lo) : (__mmask16)0, upto = hi > 0 ? v_mask(hi) : (__mmask16)0;
  return _mm512_maskz_loadu_ps((__mmask16)(upto & ~below), p);
}

/* Lanes of p whose bit is set, zero elsewhere. */
static inline vec v_load_bits(const float *p, uint32_t bits) { return _mm512_maskz_loadu_ps((__mmask16)bits, p); }

/* Lanes 0, 2, 4, ... of a, then of b. */
static inline vec v_even(vec a, vec b) {
  return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), b);
}

#endif
