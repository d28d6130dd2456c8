// Compresses channels to one number each: filters side by side in the lanes of a vector, one row per channel.
#pragma once

// The lanes of a block: where each filter begins, in elements. Lanes past the last filter repeat the first one.
struct Lanes {
  int64_t offset[FEC_BYTES / 4];
  int64_t end;  // elements behind the layer's data that may be read
  bool neighbours;  // neighbouring filters are neighbouring elements
};

template <class T>
static Lanes lanes_of(const Layer& layer, int64_t first, int64_t count) {
  Lanes lanes{};
  for (int64_t l = 0; l < Of<T>::lanes; ++l) lanes.offset[l] = filter_offset(layer, first + (l < count ? l : 0));
  lanes.end = 1 + (layer.outer - 1) * layer.stride_outer + (layer.inner - 1) * layer.stride_inner +
              (layer.channels - 1) * layer.stride_channel + (layer.taps - 1) * layer.stride_tap;
  lanes.neighbours = count == Of<T>::lanes && lanes.offset[count - 1] - lanes.offset[0] == count - 1 &&
                     (layer.inner == 1 ? layer.stride_outer : layer.stride_inner) == 1;
  return lanes;
}

template <class T, Compress compress>
FEC_INLINE Vec<T> with_tap(Vec<T> sum, Vec<T> w) {
  if constexpr (compress == Compress::Rms) return sum + w * w;
  if constexpr (compress == Compress::AbsMean) return sum + magnitude<T>(w);
  return sum + w;
}

template <class T, Compress compress>
FEC_INLINE Vec<T> compressed(Vec<T> sum, T taps) {
  if (taps != 1) sum /= taps;
  return compress == Compress::Rms ? root<T>(sum) : sum;
}

// `n` numbers from an offset; the other lanes are zero or undefined.
template <class T, class Read>
FEC_INLINE Vec<T> read_some(const typename Read::Storage* data, int64_t offset, int64_t n, int64_t end) {
  if (n >= Of<T>::lanes || offset + Of<T>::lanes <= end) return Read::many(data + offset);
  typename Read::Storage near[Of<T>::lanes] = {};
  for (int64_t i = 0; i < n; ++i) near[i] = data[offset + i];
  return Read::many(near);
}

// The numbers of `channels` channels, one row of lanes per channel, with a stride of `step` numbers.
template <class T, class Read, Compress compress>
static void columns(const Layer& layer, T scale, const Lanes& lanes, int64_t channels, T* rows, int64_t step) {
  using V = Vec<T>;
  constexpr int64_t width = Of<T>::lanes;
  const auto* data = static_cast<const typename Read::Storage*>(layer.data);
  const int64_t taps = layer.taps, stride = layer.stride_channel, tap = layer.stride_tap;
  if (lanes.neighbours) {
    for (int64_t c = 0; c < channels; ++c) {
      V sum{};
      const auto* from = data + lanes.offset[0] + c * stride;
      for (int64_t t = 0; t < taps; ++t) sum = with_tap<T, compress>(sum, Read::many(from + t * tap) * scale);
      store(rows + c * step, compressed<T, compress>(sum, T(taps)));
    }
  } else if (stride == 1) {  // channels are innermost: the taps are summed before the transposition
    for (int64_t c = 0; c < channels; c += width) {
      const int64_t n = channels - c < width ? channels - c : width;
      V part[width];
      for (int64_t l = 0; l < width; ++l) {
        V sum{};
        for (int64_t t = 0; t < taps; ++t) {
          const V w = read_some<T, Read>(data, lanes.offset[l] + c + t * tap, n, lanes.end);
          sum = with_tap<T, compress>(sum, w * scale);
        }
        part[l] = sum;
      }
      transpose<T>(part);
      for (int64_t i = 0; i < n; ++i) store(rows + (c + i) * step, compressed<T, compress>(part[i], T(taps)));
    }
  } else if (tap == 1) {  // taps are innermost: transposed first, then summed
    const bool dense = stride == taps;
    const int64_t runs = dense ? 1 : channels, length = dense ? channels * taps : taps;
    for (int64_t run = 0; run < runs; ++run) {
      V sum{};
      int64_t c = run, t = 0;
      for (int64_t k = 0; k < length; k += width) {
        const int64_t n = length - k < width ? length - k : width;
        V part[width];
        for (int64_t l = 0; l < width; ++l) {
          part[l] = read_some<T, Read>(data, lanes.offset[l] + run * stride + k, n, lanes.end) * scale;
        }
        transpose<T>(part);
        for (int64_t i = 0; i < n; ++i) {
          sum = with_tap<T, compress>(sum, part[i]);
          if (++t < taps) continue;
          store(rows + c++ * step, compressed<T, compress>(sum, T(taps)));
          sum = V{};
          t = 0;
        }
      }
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      V sum{};
      for (int64_t t = 0; t < taps; ++t) {
        V w{};
        for (int64_t l = 0; l < width; ++l) w[l] = Read::get(data[lanes.offset[l] + c * stride + t * tap]);
        sum = with_tap<T, compress>(sum, w * scale);
      }
      store(rows + c * step, compressed<T, compress>(sum, T(taps)));
    }
  }
}

template <class T>
static void columns_of(const Job& job, const Lanes& lanes, int64_t channels, T* rows, int64_t step) {
  const Layer& layer = *job.layer;
  const T scale = T(job.scale);
  // The root mean square of a single tap is its magnitude.
  const bool single_tap = layer.taps == 1;
  Readers<T>::visit(layer.dtype, [&](auto reader) {
    using Read = decltype(reader);
    switch (job.formula.compress) {
      case Compress::Rms:
        if (!single_tap) return columns<T, Read, Compress::Rms>(layer, scale, lanes, channels, rows, step);
        [[fallthrough]];
      case Compress::AbsMean: return columns<T, Read, Compress::AbsMean>(layer, scale, lanes, channels, rows, step);
      default: return columns<T, Read, Compress::Mean>(layer, scale, lanes, channels, rows, step);
    }
  });
}
