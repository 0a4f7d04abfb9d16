// The histogram of p_atypical and the slider that recounts.

const Threshold = (() => {
  const BINS = 50;
  const slider = byId('threshold');
  const value = () => Number(slider.value);
  // Scores have four digits: rounded up to them, a threshold calls the same figures.
  const OWN = Math.ceil(DATA.threshold * 1e4 - 1e-6) / 1e4;
  const KEY_STEP = 0.01;

  function show() {
    const [amf, mf] = countAtypical(value());
    byId('threshold-value').textContent = value().toFixed(4);
    const own = value() === OWN ? ' This is the model’s own threshold.' : '';
    byId('threshold-counts').textContent = `${rateInWords(amf, mf)}.${own}`;
    draw();
  }

  function draw() {
    const svg = byId('histogram');
    const counts = bins();
    const highest = Math.max(1, ...counts.map(([below, above]) => below + above));
    svg.setAttribute('viewBox', `0 0 ${BINS} 100`);
    svg.setAttribute('preserveAspectRatio', 'none');
    svg.replaceChildren(svg.querySelector('title'));
    counts.forEach(([below, above], i) => {
      const [low, high] = [(below / highest) * 96, (above / highest) * 96];
      svg.append(makeSvg('rect', { class: 'nmf', x: i + 0.05, y: 100 - low, width: 0.9, height: low }));
      svg.append(makeSvg('rect', { class: 'amf', x: i + 0.05, y: 100 - low - high, width: 0.9, height: high }));
    });
    const at = value() * BINS;
    svg.append(makeSvg('line', { class: 'cut', x1: at, x2: at, y1: 0, y2: 100 }));
  }

  // [below, at or above the threshold] for each bin.
  function bins() {
    const counts = Array.from({ length: BINS }, () => [0, 0]);
    for (const figure of MITOTIC) {
      if (figure.pAtypical === null) continue; // drawn by a reviewer
      const bin = Math.min(BINS - 1, Math.floor(figure.pAtypical * BINS));
      counts[bin][isAtypical(figure, value()) ? 1 : 0] += 1;
    }
    return counts;
  }

  function reset() {
    slider.value = OWN;
  }

  function onKey(event) {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!step) return;
    slider.value = value() + step * KEY_STEP;
    slider.dispatchEvent(new Event('input'));
    event.preventDefault();
  }

  function start(onMove) {
    reset();
    show();
    slider.addEventListener('keydown', onKey);
    slider.addEventListener('input', () => {
      show();
      onMove();
    });
    byId('threshold-reset').addEventListener('click', () => {
      reset();
      slider.dispatchEvent(new Event('input'));
    });
  }

  return { start, value };
})();
