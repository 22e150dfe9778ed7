// SPDX-License-Identifier: Apache-2.0
//
// memory.cc - guarded buffers and the operands that live in them.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "support.h"

#if defined(__SANITIZE_ADDRESS__)
#define LATH_TEST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LATH_TEST_ASAN 1
#endif
#endif
#if defined(LATH_TEST_ASAN)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace lath_test {
namespace {

constexpr unsigned char kPattern = 0xff;
constexpr size_t kGuardBytes = 256;

size_t RoundUp(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Reads poisoned guard bands as well. Lifting the poison instead would race with other threads that check the same buffer.
__attribute__((no_sanitize("address"), noinline)) bool AllPattern(const unsigned char *begin, const unsigned char *end) {
  while (begin != end && *begin == kPattern) ++begin;
  return begin == end;
}

size_t StorageBytes(lath_dtype dtype, int64_t rows, int64_t cols, int64_t stride) {
  if (rows == 0 || cols == 0) return 0;
  return static_cast<size_t>((rows - 1) * stride + cols) * lath_dtype_size(dtype);
}

void Store(lath_dtype dtype, unsigned char *to, double value) {
  const double rounded = RoundTo(dtype, value);
  if (dtype == LATH_F64) {
    std::memcpy(to, &rounded, sizeof rounded);
    return;
  }
  const float narrow = static_cast<float>(rounded);
  if (dtype == LATH_F32) {
    std::memcpy(to, &narrow, sizeof narrow);
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof bits);
  const uint16_t upper = static_cast<uint16_t>(bits >> 16);
  std::memcpy(to, &upper, sizeof upper);
}

double Load(lath_dtype dtype, const unsigned char *from) {
  if (dtype == LATH_F64) {
    double value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  uint32_t bits = 0;
  if (dtype == LATH_F32) {
    std::memcpy(&bits, from, sizeof bits);
  } else {
    uint16_t upper;
    std::memcpy(&upper, from, sizeof upper);
    bits = static_cast<uint32_t>(upper) << 16;
  }
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace

Memory::Memory(size_t bytes, Place place, size_t misalignment) : bytes_(bytes) {
  if (place == Place::kHeap) {
    block_bytes_ = RoundUp(kGuardBytes + misalignment + bytes + kGuardBytes, 64);
    block_ = static_cast<unsigned char *>(std::aligned_alloc(64, block_bytes_));
    if (block_ == nullptr) throw std::bad_alloc();
    data_ = block_ + kGuardBytes + misalignment;
  } else {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    block_bytes_ = RoundUp(std::max<size_t>(bytes, 1), page);
    mapping_bytes_ = block_bytes_ + 2 * page;
    void *mapping = mmap(nullptr, mapping_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    mapping_ = static_cast<unsigned char *>(mapping);
    block_ = mapping_ + page;
    if (mprotect(block_, block_bytes_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    data_ = place == Place::kPageStart ? block_ : block_ + block_bytes_ - bytes;
  }
  std::memset(block_, kPattern, block_bytes_);
  if (mapping_ == nullptr) ASAN_POISON_MEMORY_REGION(block_, block_bytes_);
  ASAN_UNPOISON_MEMORY_REGION(data_, bytes_);
}

Memory::~Memory() {
  if (mapping_ != nullptr) {
    munmap(mapping_, mapping_bytes_);
    return;
  }
  ASAN_UNPOISON_MEMORY_REGION(block_, block_bytes_);
  std::free(block_);
}

bool Memory::Intact() const { return AllPattern(block_, data_) && AllPattern(data_ + bytes_, block_ + block_bytes_); }

Operand::Operand(lath_dtype dtype, int64_t rows, int64_t cols, Layout layout)
    : dtype_(dtype),
      rows_(rows),
      cols_(cols),
      stride_(layout.repeat_row ? 0 : cols + layout.gap),
      memory_(std::make_unique<Memory>(StorageBytes(dtype, rows, cols, stride_), layout.place,
                                       static_cast<size_t>(layout.misalignment) * lath_dtype_size(dtype))) {}

size_t Operand::At(int64_t row, int64_t col) const {
  return static_cast<size_t>(row * stride_ + col) * lath_dtype_size(dtype_);
}

void Operand::Fill(const Values &values) {
  ASSERT_EQ(values.size(), static_cast<size_t>(rows_ * cols_));
  for (int64_t row = 0; row < rows_; ++row) {
    for (int64_t col = 0; col < cols_; ++col) Set(row, col, values[static_cast<size_t>(row * cols_ + col)]);
  }
}

void Operand::Set(int64_t row, int64_t col, double value) { Store(dtype_, memory_->data() + At(row, col), value); }

double Operand::Get(int64_t row, int64_t col) const { return Load(dtype_, memory_->data() + At(row, col)); }

Values Operand::Read() const {
  Values values;
  values.reserve(static_cast<size_t>(rows_ * cols_));
  for (int64_t row = 0; row < rows_; ++row) {
    for (int64_t col = 0; col < cols_; ++col) values.push_back(Get(row, col));
  }
  return values;
}

std::vector<unsigned char> Operand::Bytes() const {
  std::vector<unsigned char> bytes;
  for (int64_t row = 0; row < rows_ && cols_ > 0; ++row) {
    const unsigned char *begin = memory_->data() + At(row, 0);
    bytes.insert(bytes.end(), begin, begin + At(0, cols_));
  }
  return bytes;
}

bool Operand::Intact() const {
  if (!memory_->Intact()) return false;
  for (int64_t row = 0; row + 1 < rows_ && cols_ > 0 && stride_ > cols_; ++row) {
    if (!AllPattern(memory_->data() + At(row, cols_), memory_->data() + At(row + 1, 0))) return false;
  }
  return true;
}

bool Operand::Untouched() const { return memory_->Intact() && AllPattern(memory_->data(), memory_->data() + memory_->bytes()); }

}  // namespace lath_test
