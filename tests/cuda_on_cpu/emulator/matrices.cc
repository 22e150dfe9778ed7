/* SPDX-License-Identifier: Apache-2.0
 * matrices.cc - mma.sync and ldmatrix, with the register layouts that cuda/device/ptx.h states. */
#include "matrices.h"

#include <math.h>
#include <string.h>

#include "sanitizers.h"
#include "state.h"

enum { FULL = -1, ROWS = 16, COLUMNS = 8, DEEPEST = 16, ROW_BYTES = 16 };

struct operands {
  float *d;
  const unsigned *a, *b;
};

struct tiles {
  float a[ROWS][DEEPEST], b[DEEPEST][COLUMNS];
};

static float from_bits(unsigned bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

static float from_bf16(unsigned bits) { return from_bits(bits << 16); }

static float from_f16(unsigned bits) {
  const unsigned sign = bits >> 15 << 31, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return from_bits(sign | 0x7f800000 | fraction << 13);
  if (exponent != 0) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
  return from_bits(sign | 0x3f800000) * (float)fraction * 0x1p-24f;
}

/* d[row][column] += sum over k, ascending, in fp32. */
static void multiply(void *const lane[32], const struct tiles *tiles, int depth) {
  for (int l = 0; l < EMULATOR_LANES; l++) {
    float *d = ((const struct operands *)lane[l])->d;
    for (int i = 0; i < 4; i++) {
      const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
      for (int k = 0; k < depth; k++) d[i] += tiles->a[row][k] * tiles->b[k][column];
    }
  }
}

static void multiply_16_bit(void *const lane[32], float (*value)(unsigned bits)) {
  struct tiles tiles;
  for (int l = 0; l < EMULATOR_LANES; l++) {
    const struct operands *mine = (const struct operands *)lane[l];
    const int g = l / 4, t = l % 4;
    for (int half = 0; half < 2; half++) {
      const int shift = 16 * half;
      for (int i = 0; i < 4; i++) tiles.a[g + i % 2 * 8][2 * t + i / 2 * 8 + half] = value(mine->a[i] >> shift & 0xffff);
      for (int i = 0; i < 2; i++) tiles.b[2 * t + i * 8 + half][g] = value(mine->b[i] >> shift & 0xffff);
    }
  }
  multiply(lane, &tiles, 16);
}

static void multiply_bf16(void *const lane[32], unsigned) { multiply_16_bit(lane, from_bf16); }
static void multiply_f16(void *const lane[32], unsigned) { multiply_16_bit(lane, from_f16); }

static void multiply_tf32(void *const lane[32], unsigned) {
  const unsigned kept = ~0x1fffu;
  struct tiles tiles;
  for (int l = 0; l < EMULATOR_LANES; l++) {
    const struct operands *mine = (const struct operands *)lane[l];
    const int g = l / 4, t = l % 4;
    for (int i = 0; i < 4; i++) tiles.a[g + i % 2 * 8][t + i / 2 * 4] = from_bits(mine->a[i] & kept);
    for (int i = 0; i < 2; i++) tiles.b[t + i * 4][g] = from_bits(mine->b[i] & kept);
  }
  multiply(lane, &tiles, 8);
}

void emulator_mma_m16n8k16_bf16(float d[4], const unsigned a[4], const unsigned b[2], emulator_site site) {
  struct operands mine = {d, a, b};
  emulator_warp((unsigned)FULL, "mma.sync bf16", &mine, multiply_bf16, false, site);
}
void emulator_mma_m16n8k16_f16(float d[4], const unsigned a[4], const unsigned b[2], emulator_site site) {
  struct operands mine = {d, a, b};
  emulator_warp((unsigned)FULL, "mma.sync f16", &mine, multiply_f16, false, site);
}
void emulator_mma_m16n8k8_tf32(float d[4], const unsigned a[4], const unsigned b[2], emulator_site site) {
  struct operands mine = {d, a, b};
  emulator_warp((unsigned)FULL, "mma.sync tf32", &mine, multiply_tf32, false, site);
}

unsigned emulator_to_tf32(float value) {
  unsigned bits;
  memcpy(&bits, &value, sizeof(bits));
  return isnan(value) ? 0x7fffffff : (bits + 0x1000) & ~0x1fffu;
}

/* ---- ldmatrix ------------------------------------------------------------------------------------------------------------ */

struct matrix_row {
  uint16_t element[8];
  unsigned *registers;
};

static unsigned element(void *const lane[32], int matrix, int row, int column) {
  return ((const struct matrix_row *)lane[matrix * 8 + row])->element[column];
}

static void spread(void *const lane[32], unsigned) {
  for (int l = 0; l < EMULATOR_LANES; l++)
    for (int m = 0; m < 4; m++) {
      const int g = l / 4, t = l % 4;
      ((struct matrix_row *)lane[l])->registers[m] = element(lane, m, g, 2 * t) | element(lane, m, g, 2 * t + 1) << 16;
    }
}

static void spread_transposed(void *const lane[32], unsigned) {
  for (int l = 0; l < EMULATOR_LANES; l++)
    for (int m = 0; m < 4; m++) {
      const int g = l / 4, t = l % 4;
      ((struct matrix_row *)lane[l])->registers[m] = element(lane, m, 2 * t, g) | element(lane, m, 2 * t + 1, g) << 16;
    }
}

static void load(unsigned r[4], const void *row, const char *operation, emulator_combine combine, emulator_site site) {
  struct matrix_row mine;
  if ((uintptr_t)row % ROW_BYTES) emulator_refuse(site, "%s: row %p is not aligned to %d bytes", operation, row, ROW_BYTES);
  if (!emulator_is_shared(row, ROW_BYTES)) emulator_refuse(site, "%s: row %p is not in shared memory", operation, row);
  emulator_reads(row, ROW_BYTES);
  memcpy(mine.element, row, sizeof(mine.element));
  mine.registers = r;
  emulator_warp((unsigned)FULL, operation, &mine, combine, false, site);
}

void emulator_ldmatrix_x4(unsigned r[4], const void *row, emulator_site site) { load(r, row, "ldmatrix", spread, site); }
void emulator_ldmatrix_x4_trans(unsigned r[4], const void *row, emulator_site site) {
  load(r, row, "ldmatrix.trans", spread_transposed, site);
}
