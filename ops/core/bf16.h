/* SPDX-License-Identifier: Apache-2.0
 * bf16.h - bfloat16 is the upper half of a float. */
#ifndef LATH_CORE_BF16_H
#define LATH_CORE_BF16_H

#include <stdint.h>
#include <string.h>

static inline float lath_bf16_to_f32(uint16_t h) {
  const uint32_t bits = (uint32_t)h << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

/* To nearest, ties to even; NaN stays NaN (rounding up its mantissa could turn it into infinity). */
static inline uint16_t lath_f32_to_bf16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
  return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#endif
