/* SPDX-License-Identifier: Apache-2.0
 *
 * out_of_range.c - see out_of_range.h. Also the one file here that reads lath.h as C. */
#include "out_of_range.h"

#include "lath.h"

const char *StatusTextOf(int status) { return lath_status_text((lath_status)status); }

size_t DtypeSizeOf(int dtype) { return lath_dtype_size((lath_dtype)dtype); }

const char *IsaNameOf(int isa) { return lath_isa_name((lath_isa)isa); }
