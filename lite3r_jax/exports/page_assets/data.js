// What is embedded in the page, and colors.

const embedded = (id) => document.getElementById(id).textContent;
const scene = JSON.parse(embedded("scene"));

// Undo `_pack` of page.py: one Int32Array for each of `widths`, the bytes per number.
async function unpack(id, count, widths) {
  const text = atob(embedded(id));
  const bytes = Uint8Array.from(text, (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  let start = 0;
  return widths.map((width) => {
    const values = new Int32Array(count);
    let value = 0;
    for (let i = 0; i < count; i++) {
      let coded = 0;
      for (let plane = 0; plane < width; plane++) coded = (coded << 8) | planes[start + plane * count + i];
      value += (coded >>> 1) ^ -(coded & 1);
      values[i] = value;
    }
    start += width * count;
    return values;
  });
}

const photoSource = (view) => `data:image/jpeg;base64,${embedded(`photo-${view}`)}`;

// Colors of maps: lightness grows evenly from dark violet over teal to pale yellow. Built in OKLCH
// (B. Ottosson, "A perceptual color space for image processing", 2020).
function oklch(lightness, chroma, hue) {
  const a = chroma * Math.cos((hue * Math.PI) / 180);
  const b = chroma * Math.sin((hue * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((v) => {
    const linear = clamp(v, 0, 1);
    const encoded = linear <= 0.0031308 ? 12.92 * linear : 1.055 * linear ** (1 / 2.4) - 0.055;
    return Math.round(255 * encoded);
  });
}

const mapColors = Array.from({ length: 256 }, (_, i) => {
  const t = i / 255;
  return oklch(0.22 + 0.7 * t, 0.075 + 0.055 * Math.sin(Math.PI * t), 305 - 205 * t);
});

// Neighboring views differ: hues a golden angle apart.
const viewColor = (view) => oklch(0.72, 0.13, (20 + view * 137.508) % 360);

const grouped = (count) => count.toLocaleString("en-GB").replaceAll(",", "\u2009");

function brief(value) {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(2);
  return value.toFixed(Math.max(0, 3 - Math.floor(Math.log10(size)) - 1));
}
