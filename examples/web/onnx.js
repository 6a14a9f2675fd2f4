// What an ONNX file of asvp-export says about itself, and pictures as it takes and gives them. No browser needed.

/** metadata_props, which onnxruntime-web does not hand out: field 14 of ModelProto, pairs of strings in fields 1 and 2. */
export function metadata(bytes) {
  const text = (value) => new TextDecoder().decode(value);
  const found = {};
  for (const [field, value] of fields(bytes)) {
    if (field !== 14) continue;
    const pair = Object.fromEntries(fields(value));
    found[text(pair[1])] = text(pair[2]);
  }
  return found;
}

/** The fields of a protobuf message, one level deep: [number, bytes or whole number]. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    let scale = 1;
    let byte;
    do {
      byte = bytes[at++];
      value += (byte & 127) * scale;
      scale *= 128;
    } while (byte > 127);
    return value;
  };
  while (at < bytes.length) {
    const key = varint();
    const field = Math.floor(key / 8);
    if (key % 8 === 0) yield [field, varint()];
    else if (key % 8 === 1) at += 8;
    else if (key % 8 === 5) at += 4;
    else if (key % 8 === 2) {
      const length = varint();
      yield [field, bytes.subarray(at, (at += length))];
    } else throw new Error("it is not an ONNX model");
  }
}

/** The rules of a file: the values of black and white, the sizes that it takes. Without metadata: 0..1, any size. */
export function rules(properties) {
  const read = (key, otherwise) => (`asvp.${key}` in properties ? JSON.parse(properties[`asvp.${key}`]) : otherwise);
  const range = read("data_range", 1);
  const [low, high] = Array.isArray(range) ? range : [0, range];
  const size = { minimum: 1, multiple: 1, square: false, ...read("size", {}) };
  return { low, high, ...size, layers: read("layers", []), output: properties["asvp.output"] };
}

/** The smallest [height, width] that the file takes and the picture fits in. */
export function fitted(height, width, { minimum, multiple, square }) {
  const fit = (pixels) => Math.ceil(Math.max(pixels, minimum) / multiple) * multiple;
  return square ? Array(2).fill(fit(Math.max(height, width))) : [fit(height), fit(width)];
}

/** Where padded row or column `i` comes from: mirrored without the edge itself, or the edge where that is too short. */
function source(i, size, padded) {
  if (i < size) return i;
  return padded - size < size ? 2 * (size - 1) - i : size - 1;
}

/** Pixels (RGBA, 8 bit) as the model's input: Float32Array [channels, H, W], padded below and on the right. */
export function toInput(rgba, height, width, channels, rule) {
  const [rows, columns] = fitted(height, width, rule);
  const data = new Float32Array(channels * rows * columns);
  const span = rule.high - rule.low;
  for (let y = 0; y < rows; y++) {
    const row = source(y, height, rows) * width;
    for (let x = 0; x < columns; x++) {
      const from = 4 * (row + source(x, width, columns));
      const at = y * columns + x;
      const [red, green, blue] = [rgba[from], rgba[from + 1], rgba[from + 2]];
      if (channels === 1) data[at] = rule.low + (span * (0.2126 * red + 0.7152 * green + 0.0722 * blue)) / 255;
      else [red, green, blue].forEach((value, c) => (data[c * rows * columns + at] = rule.low + (span * value) / 255));
    }
  }
  return { data, dims: [1, channels, rows, columns] };
}

/** What of the model's output is picture, without the padding: { data: [channels, H, W], channels, height, width }. */
export function cropped(output, dims, input, height, width) {
  const [, channels, rows, columns] = dims;
  const high = Math.floor((rows * height) / input[2]);
  const wide = Math.floor((columns * width) / input[3]);
  const data = new Float32Array(channels * high * wide);
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y < high; y++) {
      const from = (c * rows + y) * columns;
      data.set(output.subarray(from, from + wide), (c * high + y) * wide);
    }
  }
  return { data, channels, height: high, width: wide };
}

/** A restored picture as RGBA, 8 bit. */
export function toPixels({ data, channels, height, width }, { low, high }) {
  const plane = height * width;
  const rgba = new Uint8ClampedArray(4 * plane).fill(255); // rounds and clamps
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) rgba[4 * i + c] = ((data[(channels === 3 ? c * plane : 0) + i] - low) / (high - low)) * 255;
  }
  return rgba;
}
