/* SPDX-License-Identifier: Apache-2.0
 *
 * out_of_range.h - calls with values outside the enumerations of lath.h. A C caller can make them; in C++ the conversion itself
 * is undefined, so they are compiled as C. */
#ifndef LATH_TESTS_C_OUT_OF_RANGE_H_
#define LATH_TESTS_C_OUT_OF_RANGE_H_

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

const char *StatusTextOf(int status);
size_t DtypeSizeOf(int dtype);
const char *IsaNameOf(int isa);

#ifdef __cplusplus
}
#endif

#endif
