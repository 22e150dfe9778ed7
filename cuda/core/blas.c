/* SPDX-License-Identifier: Apache-2.0
 * blas.c - finds cuBLAS, and with it cuBLASLt, among the libraries of the process.
 *
 * PyTorch brings a cuBLAS of its own, in a folder that differs from one installation to the next and with a number in its name
 * that differs from one CUDA to the next. Its handle works with that library only. So we ask the loader for what is mapped, by
 * the part of the name that stays, and open exactly that file once more; nothing new is loaded. */
#define _GNU_SOURCE
#include "core/blas.h"

#include <dlfcn.h>
#include <limits.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "lath_cuda.h"

static struct lath_blas blas;
static struct lath_blas_lt lt;
static char blas_path[PATH_MAX];
static pthread_once_t blas_once = PTHREAD_ONCE_INIT;

static int is_cublas(struct dl_phdr_info *info, size_t size, void *unused) {
  (void)size, (void)unused;
  const char *slash = info->dlpi_name ? strrchr(info->dlpi_name, '/') : NULL;
  const char *name = slash ? slash + 1 : info->dlpi_name;
  if (!name || strncmp(name, "libcublas.so.", strlen("libcublas.so.")) != 0) return 0;
  const int length = snprintf(blas_path, sizeof blas_path, "%s", info->dlpi_name);
  return length > 0 && (size_t)length < sizeof blas_path;
}

/* ISO C has no conversion from an object pointer to a function pointer; POSIX promises that the bits are the same. */
static int look_up(void *library, const char *name, void *function) {
  void *const address = dlsym(library, name);
  memcpy(function, &address, sizeof address);
  return address != NULL;
}

/* All or nothing. cuBLAS needs cuBLASLt, and a search through a library goes on to what it needs: this finds the one that
 * belongs to it, also where a process has two. */
static const struct lath_blas_lt *find_lt(void *library) {
  const struct {
    const char *name;
    void *function;
  } wanted[] = {
      {"cublasLtMatmulDescInit_internal", &lt.init_operation},
      {"cublasLtMatmulDescSetAttribute", &lt.set_operation},
      {"cublasLtMatrixLayoutInit_internal", &lt.init_layout},
      {"cublasLtMatmulPreferenceInit_internal", &lt.init_preference},
      {"cublasLtMatmulPreferenceSetAttribute", &lt.set_preference},
      {"cublasLtMatmulAlgoGetHeuristic", &lt.choose},
      {"cublasLtMatmul", &lt.multiply},
  };
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
    if (!look_up(library, wanted[i].name, wanted[i].function)) return NULL;
  return &lt;
}

static void find(void) {
  if (!dl_iterate_phdr(is_cublas, NULL)) return;
  void *library = dlopen(blas_path, RTLD_LAZY | RTLD_NOLOAD);
  if (!library) return;
  if (!look_up(library, "cublasGemmEx", &blas.gemm)) return;
  look_up(library, "cublasGemmEx_64", &blas.gemm_64);
  if (!look_up(library, "cublasGetMathMode", &blas.get_math_mode) ||
      !look_up(library, "cublasSetMathMode", &blas.set_math_mode))
    blas.get_math_mode = NULL, blas.set_math_mode = NULL;
  blas.lt = find_lt(library);
  blas.name = blas_path;
}

const struct lath_blas *lath_blas(void) {
  pthread_once(&blas_once, find);
  return &blas;
}

cublasMath_t lath_blas_math(cublasHandle_t handle) {
  cublasMath_t mode = CUBLAS_DEFAULT_MATH;
  if (!lath_blas()->get_math_mode || lath_blas()->get_math_mode(handle, &mode)) return CUBLAS_DEFAULT_MATH;
  return (cublasMath_t)((unsigned)mode & ~(unsigned)CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
}

const char *lath_cuda_blas_name(void) { return lath_blas()->name; }
