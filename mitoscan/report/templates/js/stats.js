// The arithmetic of the page; the same as in scan/score.py.

const Z95 = 1.959963984540054; // 97.5 % quantile of the normal distribution

function wilson(k, n) {
  const z2 = Z95 * Z95;
  const centre = (k + z2 / 2) / (n + z2);
  const half = (Z95 * Math.sqrt((k * (n - k)) / n + z2 / 4)) / (n + z2);
  return [k === 0 ? 0 : centre - half, k === n ? 1 : centre + half];
}

function rateInWords(amf, mf) {
  const figures = `${mf} mitotic figure${mf === 1 ? '' : 's'}`;
  if (mf === 0) return 'No mitotic figures, so no AMF rate.';
  const [low, high] = wilson(amf, mf);
  const interval = `${(low * 100).toFixed(1)}–${(high * 100).toFixed(1)} %`;
  return `${amf} of ${figures} atypical: ${percent(amf / mf)}, 95 % interval ${interval}`;
}

function isAtypical(figure, threshold) {
  return figure.isGiven ? figure.called === AMF : figure.pAtypical >= threshold;
}

function countAtypical(threshold) {
  return [MITOTIC.filter((figure) => isAtypical(figure, threshold)).length, MITOTIC.length];
}

// Figures per mm² on a grid: a Gaussian of `sigma` µm about each.
function densityGrid(figures, width, height, sigma) {
  const cell = Math.max(sigma / 2, Math.max(width, height) / 256);
  const columns = Math.max(1, Math.ceil(width / cell));
  const rows = Math.max(1, Math.ceil(height / cell));
  const values = new Float64Array(columns * rows);
  const reach = Math.ceil((3 * sigma) / cell);
  const peak = 1e6 / (2 * Math.PI * sigma * sigma);
  for (const figure of figures) {
    const column = Math.floor(figure.x / cell);
    const row = Math.floor(figure.y / cell);
    for (let r = Math.max(0, row - reach); r <= Math.min(rows - 1, row + reach); r += 1) {
      for (let c = Math.max(0, column - reach); c <= Math.min(columns - 1, column + reach); c += 1) {
        const dx = (c + 0.5) * cell - figure.x;
        const dy = (r + 0.5) * cell - figure.y;
        values[r * columns + c] += peak * Math.exp(-(dx * dx + dy * dy) / (2 * sigma * sigma));
      }
    }
  }
  return { values, columns, rows, cell, highest: values.reduce((a, b) => Math.max(a, b), 0) };
}
