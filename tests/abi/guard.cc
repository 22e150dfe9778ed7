// SPDX-License-Identifier: Apache-2.0
//
// guard.cc - holds the prototypes of bindings/torch/shim.h against the headers of the installed torch. Compile-only:
//
//   g++ -std=c++20 -fsyntax-only -DTORCH_TARGET_VERSION=0x020a000000000000 -I<torch>/include -Ibindings/torch tests/abi/guard.cc
//
// With -DUSE_CUDA the functions of libtorch_cuda.so are compared too; without, torch declares none of them.
//
// TORCH_TARGET_VERSION hides every function that is younger than the oldest supported torch, so the use of one is an error too.
#include <torch/csrc/stable/c/shim.h>

#include <type_traits>

// Our types, beside torch's own: a typedef of another type is an error.
#define SHIM_LIST_ONLY
#include "shim.h"

static_assert(TORCH_FEATURE_VERSION == SHIM_TARGET_VERSION, "compile with TORCH_TARGET_VERSION set to the target of shim.h");

// Each name must be declared by torch, with the type that we give it.
#define GUARD_TYPE(type, name, parameters) \
  static_assert(std::is_same_v<decltype(&::name), type(*) parameters>, "shim.h and torch disagree on " #name);
SHIM_FUNCTIONS(GUARD_TYPE)
#ifdef USE_CUDA
SHIM_CUDA_FUNCTIONS(GUARD_TYPE)
#endif

// The test of this test: a prototype that is wrong must not pass.
#ifdef GUARD_BREAK_TYPE
GUARD_TYPE(AOTITorchError, aoti_torch_get_dim, (AtenTensorHandle tensor, int32_t *dim))
#endif
#ifdef GUARD_BREAK_CUDA_TYPE
GUARD_TYPE(AOTITorchError, aoti_torch_get_current_cuda_stream, (int32_t device_index, int64_t *stream))
#endif
#ifdef GUARD_BREAK_NAME
GUARD_TYPE(AOTITorchError, aoti_torch_no_such_function, (void))
#endif
