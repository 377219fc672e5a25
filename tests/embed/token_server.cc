// A token-sampling server in C++ alone: it reads rows of logits or probabilities from a loopback socket and answers
// with sampled token ids. It links //kernels/sampling, and neither Python nor PyTorch.
//
//   token_server            prints "listening on 127.0.0.1:<port>", then serves one connection after another
//
// A request is a Header, then num_rows * vocab floats; an answer is an i32, 0, then num_rows ids as i32; or an i32 n >
// 0, then n bytes of what was wrong. All numbers are in this machine's byte order. A connection may send many requests;
// one whose size is absurd is answered and closed.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/sampling/sample.h"

namespace {

struct Header {
  uint32_t is_logits;  // 1: temperature and softmax come first
  uint32_t num_rows;
  uint32_t vocab;
  int32_t top_k;      // 0 is off
  float top_p;        // 1 is off
  float temperature;  // of logits; 0 is greedy
  int64_t seed, offset;
};

constexpr uint64_t kMaxValues = uint64_t{1} << 26;  // 256 MiB

bool receive(int socket, void* data, size_t size) {
  for (char* to = static_cast<char*>(data); size > 0;) {
    const ssize_t count = read(socket, to, size);
    if (count <= 0) return false;
    to += count;
    size -= static_cast<size_t>(count);
  }
  return true;
}

bool send_all(int socket, const void* data, size_t size) {
  for (const char* from = static_cast<const char*>(data); size > 0;) {
    const ssize_t count = write(socket, from, size);
    if (count <= 0) return false;
    from += count;
    size -= static_cast<size_t>(count);
  }
  return true;
}

bool send_error(int socket, const std::string& message) {
  const int32_t size = static_cast<int32_t>(message.size());
  return send_all(socket, &size, sizeof(size)) && send_all(socket, message.data(), message.size());
}

// Unnormalized: the sampler divides by the row's sum.
void softmax_in_place(float* row, uint32_t vocab, float temperature) {
  float highest = -INFINITY;
  for (uint32_t i = 0; i < vocab; ++i) highest = row[i] > highest ? row[i] : highest;
  for (uint32_t i = 0; i < vocab; ++i) {
    row[i] = temperature > 0 ? std::exp((row[i] - highest) / temperature) : row[i] == highest ? 1.0f : 0.0f;
  }
}

// False if the connection is of no more use.
bool serve_request(int socket) {
  Header header;
  if (!receive(socket, &header, sizeof(header))) return false;
  const uint64_t num_values = uint64_t{header.num_rows} * header.vocab;
  if (num_values > kMaxValues || header.num_rows > kMaxValues) {
    send_error(socket, "token_server: " + std::to_string(header.num_rows) + " rows of " + std::to_string(header.vocab) +
                           " values, expected at most " + std::to_string(kMaxValues));
    return false;
  }
  std::vector<float> values(num_values);
  if (!receive(socket, values.data(), num_values * sizeof(float))) return false;
  if (header.is_logits) {
    for (uint32_t row = 0; row < header.num_rows; ++row) {
      softmax_in_place(values.data() + uint64_t{row} * header.vocab, header.vocab, header.temperature);
    }
  }

  using sgl_kernel::DType;
  using sgl_kernel::TensorView;
  std::vector<int32_t> answer(1 + header.num_rows);  // 0, then the ids
  int64_t seed[2] = {header.seed, header.offset};
  const sgl_kernel::Status status = sgl_kernel::top_k_top_p_sampling_from_probs(
      TensorView(values.data(), DType::kF32, {header.num_rows, header.vocab}),
      TensorView(answer.data() + 1, DType::kI32, {header.num_rows}), /*maybe_indices=*/std::nullopt,
      /*maybe_top_k_arr=*/std::nullopt, header.top_k, /*maybe_top_p_arr=*/std::nullopt, header.top_p,
      /*deterministic=*/true, TensorView(seed, DType::kI64, {2}), sgl_kernel::Stream());
  if (!status.ok()) return send_error(socket, status.message());
  return send_all(socket, answer.data(), answer.size() * sizeof(int32_t));
}

}  // namespace

int main() {
  signal(SIGPIPE, SIG_IGN);  // a client that left is an error of write()
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (listener < 0 || bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener, 4) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    std::perror("token_server");
    return 1;
  }
  std::printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
  std::fflush(stdout);
  for (;;) {
    const int client = accept(listener, nullptr, nullptr);
    if (client < 0) continue;
    while (serve_request(client)) {
    }
    close(client);
  }
}
