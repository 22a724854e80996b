// Who owns a node of the autograd graph: a shared_ptr in torch 2.11, torch's own counted pointer in later releases.
#pragma once

#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>

#include <memory>
#include <type_traits>

namespace fastconv {

namespace detail {
using Owner = decltype(torch::autograd::Edge::function);
inline constexpr bool counts_itself = std::is_same_v<Owner, c10::intrusive_ptr<torch::autograd::Node>>;
}  // namespace detail

template <class N>
using NodePointer = std::conditional_t<detail::counts_itself, c10::intrusive_ptr<N>, std::shared_ptr<N>>;

template <class N>
NodePointer<N> make_node() {
  if constexpr (detail::counts_itself)
    return c10::make_intrusive<N>();
  else  // torch's deleter takes long chains of nodes apart without recursion
    return std::shared_ptr<N>(new N, [](N* node) { deleteNode(node); });
}

}  // namespace fastconv
