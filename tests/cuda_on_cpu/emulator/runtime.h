/* SPDX-License-Identifier: Apache-2.0
 * runtime.h - inside the engine: what launches ask of the runtime calls. */
#ifndef LATH_TESTS_CUDA_ON_CPU_RUNTIME_H
#define LATH_TESTS_CUDA_ON_CPU_RUNTIME_H

/* False: this launch is to fail, and its error is noted. */
bool emulator_launch_allowed(void);

#endif
