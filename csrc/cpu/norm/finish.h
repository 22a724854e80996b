// What becomes of a normalised register: + residual, activation, one rounding, store; past the caches where the result
// is larger than the last one.
#pragma once

#include "core/machine.h"
#include "epilogue.h"
#include "simd/stream.h"

namespace fastconv::FASTCONV_ISA::norm {

// A whole register's count, known to the compiler.
template <class V>
using Whole = std::integral_constant<int, V::lanes>;

template <class T>
struct Finish {
  using A = arithmetic<T>;
  using V = Vec<A>;
  T* out;
  const T* residual;
  Activation activation;
  A alpha;
  bool plain, streams;

  // `run` is the bytes that lie one behind the other; every run starts at a multiple of it.
  Finish(const Problem& p, const Args& args, int64_t run)
      : out(static_cast<T*>(args.out)),
        residual(p.epilogue.residual ? static_cast<const T*>(args.residual) : nullptr),
        activation(p.epilogue.activation),
        alpha(static_cast<A>(p.epilogue.alpha)),
        plain(!residual && activation == Activation::none),
        streams(std::is_same_v<T, A> && plain && run % cache_line == 0 &&
                reinterpret_cast<intptr_t>(out) % cache_line == 0 &&
                p.x_elements() * static_cast<int64_t>(sizeof(T)) > machine().l3) {}

  // Calls f with put(position, value, count), the store of this problem.
  template <class F>
  void with_store(F&& f) const {
    if constexpr (std::is_same_v<T, A>)
      if (streams) {
        f([to = out](int64_t at, V value, auto count) {
          if constexpr (std::is_same_v<decltype(count), Whole<V>>)
            stream(to + at, value);
          else
            store(to + at, value, count);
        });
        return finish_streams();
      }
    if (plain) return f([to = out](int64_t at, V value, auto count) { store(to + at, value, count); });
    f([this](int64_t at, V value, auto count) {
      if (residual) value = value + load(residual + at, count);
      store(out + at, activate(activation, alpha, value), count);
    });
  }
};

}  // namespace fastconv::FASTCONV_ISA::norm
