/* SPDX-License-Identifier: Apache-2.0
 * vec_avx2.h - the vector vocabulary of the kernel templates, AVX2 + FMA: 8 floats, 16 registers. */
#ifndef LATH_GEMM_VEC_AVX2_H
#define LATH_GEMM_VEC_AVX2_H

#include <immintrin.h>
#include <stdint.h>

typedef __m256 vec;
#define LANES 8
#define ISA_NAME(x) x##_avx2

#define ROWS_1 8
#define ROWS_2 6
#define ROWS_3 4
#define ROWS_4 3
#define DOT_ROWS 2

static inline __m256i v_mask(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n < 8 ? n : 8)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline vec v_zero(void) { return _mm256_setzero_ps(); }
static inline vec v_set(float f) { return _mm256_set1_ps(f); }
static inline vec v_load(const float *p) { return _mm256_loadu_ps(p); }
static inline vec v_load_n(const float *p, int64_t n) { return _mm256_maskload_ps(p, v_mask(n)); } /* n >= 1; rest 0 */
static inline void v_store(float *p, vec a) { _mm256_storeu_ps(p, a); }
static inline void v_store_n(float *p, vec a, int64_t n) { _mm256_maskstore_ps(p, v_mask(n), a); } /* n >= 1 */
static inline vec v_add(vec a, vec b) { return _mm256_add_ps(a, b); }
static inline vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); } /* a b + c */
static inline vec v_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
static inline vec v_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
static inline vec v_div(vec a, vec b) { return _mm256_div_ps(a, b); }
static inline vec v_min(vec a, vec b) { return _mm256_min_ps(a, b); } /* a < b ? a : b, so b if either is NaN */
static inline vec v_max(vec a, vec b) { return _mm256_max_ps(a, b); } /* a > b ? a : b */
static inline vec v_abs(vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a); }
static inline vec v_sign_of(vec a, vec sign) { /* a >= 0 with the sign of the other */
  return _mm256_or_ps(a, _mm256_and_ps(sign, _mm256_set1_ps(-0.f)));
}
static inline vec v_if_less(vec a, vec b, vec yes, vec no) { /* a < b ? yes : no */
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
static inline vec v_power_of_2(vec shifted) { /* 2^n from n + 1.5 2^23, n from -126 to 127 */
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23), _mm256_set1_epi32(127 << 23)));
}

/* out[0..3] = the sums of the lanes of a, b, c, d. */
static inline void v_sum4(float *out, vec a, vec b, vec c, vec d) {
  const vec lanes = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1)));
}

/* r[i][j] <-> r[j][i]: 4x4 blocks inside the 128-bit halves, then the halves. */
static inline void v_transpose(vec r[LANES]) {
  for (int i = 0; i < 8; i += 4) {
    const vec t0 = _mm256_unpacklo_ps(r[i], r[i + 1]), t1 = _mm256_unpackhi_ps(r[i], r[i + 1]);
    const vec t2 = _mm256_unpacklo_ps(r[i + 2], r[i + 3]), t3 = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
    r[i] = _mm256_shuffle_ps(t0, t2, 0x44);
    r[i + 1] = _mm256_shuffle_ps(t0, t2, 0xee);
    r[i + 2] = _mm256_shuffle_ps(t1, t3, 0x44);
    r[i + 3] = _mm256_shuffle_ps(t1, t3, 0xee);
  }
  for (int i = 0; i < 4; i++) {
    const vec low = r[i], high = r[i + 4];
    r[i] = _mm256_permute2f128_ps(low, high, 0x20);
    r[i + 4] = _mm256_permute2f128_ps(low, high, 0x31);
  }
}

/* Lanes lo <= i < hi of p, zero elsewhere; any lo and hi. */
static inline vec v_load_between(const float *p, int64_t lo, int64_t hi) {
  const __m256i below = v_mask(lo > 0 ? lo : 0), upto = v_mask(hi > 0 ? hi : 0);
  return _mm256_maskload_ps(p, _mm256_andnot_si256(below, upto));
}

/* Lanes of p whose bit is set, zero elsewhere. */
static inline vec v_load_bits(const float *p, uint32_t bits) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_maskload_ps(p, _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), bit), bit));
}

/* Lanes 0, 2, 4, 6 of a, then of b. */
static inline vec v_even(vec a, vec b) {
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)), 0xd8));
}

#endif
