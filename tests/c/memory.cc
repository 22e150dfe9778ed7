// SPDX-License-Identifier: Apache-2.0
//
// memory.cc - guarded buffers and the operands that live in them.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <numeric>

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

// From the first element to the end of the last one.
size_t StorageBytes(lath_dtype dtype, const Index &extents, const Index &strides) {
  int64_t last = 0;
  for (size_t d = 0; d < extents.size(); ++d) {
    if (extents[d] == 0) return 0;
    last += (extents[d] - 1) * strides[d];
  }
  return static_cast<size_t>(last + 1) * lath_dtype_size(dtype);
}

// The dimensions in `order`, innermost first, `step` elements apart in the innermost one.
Index Packed(const Index &extents, const std::array<size_t, 4> &order, int64_t step, int64_t gap) {
  Index strides(4);
  for (const size_t d : order) {
    strides[d] = step;
    step = step * std::max<int64_t>(extents[d], 1) + gap;
  }
  return strides;
}

// Pixels at one distance.
Index SomeChannels(const Index &extents, int64_t gap) {
  return Packed({extents[0], extents[1] + gap, extents[2], extents[3]}, {1, 3, 2, 0}, 1, 0);
}

Index ImageStrides(const Index &extents, const Layout &layout) {
  enum : size_t { n, c, h, w };
  const Index contiguous = Packed(extents, {w, h, c, n}, 1, layout.gap);
  switch (layout.images) {
    case Images::kContiguous:
      return contiguous;
    case Images::kChannelsLast:
      return Packed(extents, {c, w, h, n}, 1, layout.gap);
    case Images::kSomeChannels:
      return SomeChannels(extents, layout.gap + 1);
    case Images::kTransposed:
      return Packed(extents, {h, w, c, n}, 1, layout.gap);
    case Images::kImagesInnermost:
      return Packed(extents, {n, w, h, c}, 1, layout.gap);
    case Images::kEveryOther:
      return Packed(extents, {w, h, c, n}, 2, layout.gap);
    case Images::kRepeatedImage:
      return {0, contiguous[c], contiguous[h], contiguous[w]};
    case Images::kRepeatedChannel:
      return {contiguous[n], 0, contiguous[h], contiguous[w]};
    case Images::kOneValue:
      return {0, 0, 0, 0};
  }
  return {};
}

// Of a value that a half can hold.
uint16_t HalfBits(double value) {
  const int sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7e00);
  if (std::isinf(value)) return static_cast<uint16_t>(sign | 0x7c00);
  int exponent;
  std::frexp(value, &exponent);
  exponent = value == 0 ? -14 : std::max(exponent - 1, -14);
  const int mantissa = static_cast<int>(std::ldexp(std::fabs(value), 10 - exponent));  // 1024 and more: normal
  return static_cast<uint16_t>(sign | ((mantissa < 1024 ? 0 : (exponent + 14) << 10) + mantissa));
}

double HalfValue(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  double value = std::ldexp(mantissa + (exponent ? 1024 : 0), std::max(exponent, 1) - 25);
  if (exponent == 31) value = mantissa ? std::nan("") : HUGE_VAL;
  return bits >> 15 ? -value : value;
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
  const uint16_t half = dtype == LATH_F16 ? HalfBits(rounded) : static_cast<uint16_t>(bits >> 16);
  std::memcpy(to, &half, sizeof half);
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
    if (dtype == LATH_F16) return HalfValue(upper);
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
    : Operand(dtype, {rows, cols}, {layout.repeat_row ? 0 : cols + layout.gap, 1}, layout) {}

Operand::Operand(lath_dtype dtype, int64_t n, int64_t c, int64_t h, int64_t w, Layout layout)
    : Operand(dtype, {n, c, h, w}, ImageStrides({n, c, h, w}, layout), layout) {}

Operand::Operand(lath_dtype dtype, Index extents, Index strides, const Layout &layout)
    : dtype_(dtype),
      extents_(std::move(extents)),
      strides_(std::move(strides)),
      memory_(std::make_unique<Memory>(StorageBytes(dtype, extents_, strides_), layout.place,
                                       static_cast<size_t>(layout.misalignment) * lath_dtype_size(dtype))) {}

int64_t Operand::size() const {
  return std::accumulate(extents_.begin(), extents_.end(), int64_t{1}, std::multiplies<int64_t>());
}

size_t Operand::At(const Index &index) const {
  return static_cast<size_t>(std::inner_product(index.begin(), index.end(), strides_.begin(), int64_t{0})) *
         lath_dtype_size(dtype_);
}

std::vector<size_t> Operand::Elements() const {
  std::vector<size_t> elements = {0};
  for (size_t d = 0; d < extents_.size(); ++d) {
    const size_t step = static_cast<size_t>(strides_[d]) * lath_dtype_size(dtype_);
    std::vector<size_t> finer;
    finer.reserve(elements.size() * static_cast<size_t>(extents_[d]));
    for (const size_t at : elements) {
      for (size_t k = 0; k < static_cast<size_t>(extents_[d]); ++k) finer.push_back(at + k * step);
    }
    elements = std::move(finer);
  }
  return elements;
}

void Operand::Fill(const Values &values) {
  const std::vector<size_t> elements = Elements();
  ASSERT_EQ(values.size(), elements.size());
  for (size_t k = 0; k < values.size(); ++k) Store(dtype_, memory_->data() + elements[k], values[k]);
}

void Operand::Set(const Index &index, double value) { Store(dtype_, memory_->data() + At(index), value); }

double Operand::Get(const Index &index) const { return Load(dtype_, memory_->data() + At(index)); }

Values Operand::Read() const {
  Values values;
  values.reserve(static_cast<size_t>(size()));
  for (const size_t at : Elements()) values.push_back(Load(dtype_, memory_->data() + at));
  return values;
}

std::vector<unsigned char> Operand::Bytes() const {
  std::vector<unsigned char> bytes;
  for (const size_t at : Elements()) {
    const unsigned char *begin = memory_->data() + at;
    bytes.insert(bytes.end(), begin, begin + lath_dtype_size(dtype_));
  }
  return bytes;
}

bool Operand::Intact() const {
  if (!memory_->Intact()) return false;
  const size_t element = lath_dtype_size(dtype_), span = memory_->bytes();
  if (span <= static_cast<size_t>(size()) * element) return true;  // no gaps
  std::vector<bool> used(span / element, false);
  for (const size_t at : Elements()) used[at / element] = true;
  for (size_t k = 0; k < used.size(); ++k) {
    const unsigned char *begin = memory_->data() + k * element;
    if (!used[k] && !AllPattern(begin, begin + element)) return false;
  }
  return true;
}

bool Operand::Untouched() const { return memory_->Intact() && AllPattern(memory_->data(), memory_->data() + memory_->bytes()); }

}  // namespace lath_test
