/* SPDX-License-Identifier: Apache-2.0
 * matrices.h - tensor cores: the warp calls behind cuda/device/ptx.h, which states their operands. */
#ifndef LATH_TESTS_CUDA_ON_CPU_MATRICES_H
#define LATH_TESTS_CUDA_ON_CPU_MATRICES_H

#include "engine.h"

void emulator_mma_m16n8k16_bf16(float d[4], const unsigned a[4], const unsigned b[2], emulator_site site);
void emulator_mma_m16n8k16_f16(float d[4], const unsigned a[4], const unsigned b[2], emulator_site site);
void emulator_mma_m16n8k8_tf32(float d[4], const unsigned a[4], const unsigned b[2], emulator_site site);
unsigned emulator_to_tf32(float value);

void emulator_ldmatrix_x4(unsigned r[4], const void *row, emulator_site site);
void emulator_ldmatrix_x4_trans(unsigned r[4], const void *row, emulator_site site);

#endif
