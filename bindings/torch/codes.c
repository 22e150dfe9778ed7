/* SPDX-License-Identifier: Apache-2.0
 * codes.c - torch's numbers for dtypes, layouts and devices, and their names for messages. */
#include "codes.h"

#include <stddef.h>

#include "device.h"
#include "shim.h"

struct codes codes;

void codes_load(void) {
  codes = (struct codes){
      .device = device.type(),
      .strided = aoti_torch_layout_strided(),
      .dtype =
          {
              [LATH_F32] = aoti_torch_dtype_float32(),
              [LATH_F64] = aoti_torch_dtype_float64(),
              [LATH_BF16] = aoti_torch_dtype_bfloat16(),
              [LATH_F16] = aoti_torch_dtype_float16(),
          },
  };
}

bool codes_to_dtype(int32_t code, lath_dtype *dtype) {
  for (int i = LATH_F32; i <= (int)device.last_dtype; i++)
    if (codes.dtype[i] == code) {
      *dtype = (lath_dtype)i;
      return true;
    }
  return false;
}

const char *codes_dtype_name(int32_t code) {
  static const struct {
    int32_t (*code)(void);
    const char *name;
  } names[] = {
      {aoti_torch_dtype_float32, "torch.float32"},     {aoti_torch_dtype_float64, "torch.float64"},
      {aoti_torch_dtype_bfloat16, "torch.bfloat16"},   {aoti_torch_dtype_float16, "torch.float16"},
      {aoti_torch_dtype_int8, "torch.int8"},           {aoti_torch_dtype_int16, "torch.int16"},
      {aoti_torch_dtype_int32, "torch.int32"},         {aoti_torch_dtype_int64, "torch.int64"},
      {aoti_torch_dtype_uint8, "torch.uint8"},         {aoti_torch_dtype_bool, "torch.bool"},
      {aoti_torch_dtype_complex64, "torch.complex64"}, {aoti_torch_dtype_complex128, "torch.complex128"},
  };
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (names[i].code() == code) return names[i].name;
  return "unknown to lath (quantized, float8, ...)";
}

lath_dtype codes_sum_dtype(lath_dtype dtype) { return dtype == LATH_F64 ? LATH_F64 : LATH_F32; }
