// The slide on a canvas, in µm: picture, area scanned, density, hot spot and figures; zoom and pan.

const SlideMap = (() => {
  const canvas = byId('map');
  const context = canvas.getContext('2d');
  const width = DATA.width * DATA.mpp[0];
  const height = DATA.height * DATA.mpp[1];
  const view = { x: 0, y: 0, scale: 1 }; // µm at the left upper corner, CSS px per µm
  const rgb = (name, alpha = 1) => `rgba(${DATA.colours[name].join(', ')}, ${alpha})`;
  const listeners = { pick: () => {} };
  let thumbnail = null;
  let density = null;
  let visible = new Set();
  let selected = null;
  let waiting = false;
  let whole = true; // shows the whole slide, also after a change of size

  const layer = (name) => byId(`layer-${name}`).checked;
  const toScreen = (x, y) => [(x - view.x) * view.scale, (y - view.y) * view.scale];
  const fitting = () => Math.min(canvas.clientWidth / width, canvas.clientHeight / height);

  function redraw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    drawSlide();
    drawCrops();
    if (layer('density')) drawDensity();
    if (layer('tissue')) drawTissue();
    if (layer('hotspot')) drawHotspot();
    if (layer('figures')) drawFigures();
    drawScaleBar();
  }

  function drawSlide() {
    const [left, top] = toScreen(0, 0);
    context.imageSmoothingQuality = 'high';
    if (thumbnail.complete && thumbnail.naturalWidth) {
      context.drawImage(thumbnail, left, top, width * view.scale, height * view.scale);
    }
  }

  // Close up, the crops lie in their places: the thumbnail alone would be a blur.
  function drawCrops() {
    const side = DATA.contextUm * view.scale;
    if (side < 48) return;
    for (const figure of visible) {
      const [x, y] = toScreen(figure.x, figure.y);
      if (isOnScreen(x, y, side / 2)) {
        const picture = Crops.image(figure, redraw);
        if (picture) context.drawImage(picture, x - side / 2, y - side / 2, side, side);
      }
    }
  }

  const isOnScreen = (x, y, reach) =>
    x > -reach && y > -reach && x < canvas.clientWidth + reach && y < canvas.clientHeight + reach;

  function drawDensity() {
    density = density || paintDensity();
    const [left, top] = toScreen(0, 0);
    const scale = density.cell * view.scale;
    context.save();
    traceTissue();
    context.clip('evenodd'); // nothing was looked for outside
    context.drawImage(density.picture, left, top, density.columns * scale, density.rows * scale);
    context.restore();
  }

  function paintDensity() {
    const sigma = (Math.sqrt(DATA.hotspotMm2 || 1) / 4) * 1000;
    const grid = densityGrid(MITOTIC, width, height, sigma);
    const picture = make('canvas', { width: grid.columns, height: grid.rows });
    const pixels = new ImageData(grid.columns, grid.rows);
    grid.values.forEach((value, i) => pixels.data.set(heat(value / (grid.highest || 1)), i * 4));
    picture.getContext('2d').putImageData(pixels, 0, 0);
    const shown = grid.highest >= 10 ? grid.highest.toFixed(0) : grid.highest.toFixed(1);
    byId('density-high').textContent = `${shown} per mm², smoothed over ${(sigma / 1000).toFixed(2)} mm`;
    return { ...grid, picture };
  }

  // Viridis, clear where there is little.
  function heat(share) {
    const stops = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
    const at = Math.min(share, 0.9999) * (stops.length - 1);
    const [from, to] = [stops[Math.floor(at)], stops[Math.floor(at) + 1]];
    const colour = from.map((value, i) => value + (to[i] - value) * (at % 1));
    return [...colour, 190 * Math.min(1, share * 4)];
  }

  function drawTissue() {
    traceTissue();
    stroke(rgb('Tissue'), 1.5);
  }

  function traceTissue() {
    context.beginPath();
    for (const ring of DATA.tissue) {
      for (let i = 0; i < ring.length; i += 2) {
        const [x, y] = toScreen(ring[i] * DATA.mpp[0], ring[i + 1] * DATA.mpp[1]);
        if (i === 0) context.moveTo(x, y);
        else context.lineTo(x, y);
      }
      context.closePath();
    }
  }

  function drawHotspot() {
    if (!DATA.hotspot) return;
    const [x, y, w, h] = DATA.hotspot;
    const [left, top] = toScreen(x * DATA.mpp[0], y * DATA.mpp[1]);
    context.beginPath();
    context.rect(left, top, w * DATA.mpp[0] * view.scale, h * DATA.mpp[1] * view.scale);
    stroke('white', 5);
    stroke(rgb('Hot spot'), 2.5);
  }

  function stroke(colour, size) {
    context.strokeStyle = colour;
    context.lineWidth = size;
    context.stroke();
  }

  function drawFigures() {
    const around = DATA.circleUm * view.scale;
    const hollow = around > 12; // close up a mark surrounds its figure instead of hiding it
    const radius = hollow ? around : markRadius();
    const order = [...visible].sort((a, b) => rank(a) - rank(b));
    for (const figure of order) {
      const [x, y] = toScreen(figure.x, figure.y);
      if (isOnScreen(x, y, radius * 2)) drawMark(x, y, radius, Store.labelOf(figure), hollow);
    }
    if (selected) drawSelection(selected, radius);
  }

  const rank = (figure) => LABELS.length - LABELS.indexOf(Store.labelOf(figure)); // AMF on top

  function markRadius() {
    const count = Math.max(1, visible.size);
    const area = canvas.clientWidth * canvas.clientHeight;
    return Math.min(6, Math.max(2.5, Math.sqrt(area / 6 / Math.PI / count)));
  }

  function drawMark(x, y, radius, label, hollow) {
    context.beginPath();
    if (label === AMF) diamond(x, y, radius * (hollow ? 1.3 : 1.25));
    else if (label === NMF) context.arc(x, y, radius, 0, 2 * Math.PI);
    else cross(x, y, radius * (hollow ? 0.3 : 0.8));
    const colour = label === NOT_MF ? 'rgb(60, 60, 60)' : rgb(label);
    if (hollow || label === NOT_MF) {
      stroke('white', 4.5);
      stroke(colour, 2.2);
    } else {
      stroke('white', Math.max(1.5, radius / 2));
      context.fillStyle = colour;
      context.fill();
    }
  }

  function diamond(x, y, size) {
    context.moveTo(x - size, y);
    context.lineTo(x, y - size);
    context.lineTo(x + size, y);
    context.lineTo(x, y + size);
    context.closePath();
  }

  function cross(x, y, size) {
    context.moveTo(x - size, y - size);
    context.lineTo(x + size, y + size);
    context.moveTo(x + size, y - size);
    context.lineTo(x - size, y + size);
  }

  function drawSelection(figure, radius) {
    const [x, y] = toScreen(figure.x, figure.y);
    const size = radius * 1.4 + 6;
    context.beginPath();
    context.rect(x - size, y - size, size * 2, size * 2);
    stroke('white', 4);
    stroke('rgb(20, 20, 20)', 2);
  }

  function drawScaleBar() {
    const longest = 140 / view.scale;
    const power = 10 ** Math.floor(Math.log10(longest));
    const length = [5, 2, 1].map((step) => step * power).find((value) => value <= longest);
    const text = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
    const bar = length * view.scale;
    const bottom = canvas.clientHeight - 14;
    context.font = '12px system-ui, sans-serif';
    context.fillStyle = 'rgba(255, 255, 255, 0.85)';
    context.fillRect(8, bottom - 20, Math.max(bar, context.measureText(text).width) + 12, 28);
    context.fillStyle = 'rgb(20, 20, 20)';
    context.fillRect(14, bottom, bar, 3);
    context.fillText(text, 14, bottom - 6);
  }

  function resize() {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    if (whole) showAll();
    redraw();
  }

  function showAll() {
    whole = true;
    view.scale = fitting() * 0.96;
    view.x = (width - canvas.clientWidth / view.scale) / 2;
    view.y = (height - canvas.clientHeight / view.scale) / 2;
    redraw();
  }

  function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
    const before = view.scale;
    view.scale = Math.min(Math.max(view.scale * factor, fitting() / 2), 8);
    view.x += x / before - x / view.scale;
    view.y += y / before - y / view.scale;
    whole = false;
    redraw();
  }

  function pan(dx, dy) {
    view.x -= dx / view.scale;
    view.y -= dy / view.scale;
    whole = false;
    redraw();
  }

  function goTo(figure) {
    whole = false;
    view.scale = Math.max(view.scale, 160 / DATA.contextUm);
    centre(figure);
  }

  function centre(figure) {
    view.x = figure.x - canvas.clientWidth / 2 / view.scale;
    view.y = figure.y - canvas.clientHeight / 2 / view.scale;
    redraw();
  }

  // A selected figure comes into sight; one that is in sight moves nothing.
  function select(figure) {
    selected = figure;
    const [x, y] = toScreen(figure.x, figure.y);
    if (!whole && !isOnScreen(x, y, -20)) centre(figure);
    redraw();
  }

  function nearest(x, y) {
    const reach = Math.max(14, DATA.circleUm * view.scale);
    let best = null;
    let least = reach * reach;
    for (const figure of visible) {
      const [fx, fy] = toScreen(figure.x, figure.y);
      const distance = (fx - x) ** 2 + (fy - y) ** 2;
      if (distance < least) [best, least] = [figure, distance];
    }
    return best;
  }

  function listenToPointers() {
    const pointers = new Map();
    let moved = 0;
    canvas.addEventListener('pointerdown', (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, event);
      moved = pointers.size > 1 ? Infinity : 0;
    });
    canvas.addEventListener('pointermove', (event) => {
      const last = pointers.get(event.pointerId);
      if (!last) return;
      if (pointers.size === 2) pinch(pointers, event);
      else pan(event.clientX - last.clientX, event.clientY - last.clientY);
      moved += Math.abs(event.clientX - last.clientX) + Math.abs(event.clientY - last.clientY);
      pointers.set(event.pointerId, event);
    });
    canvas.addEventListener('pointerup', (event) => {
      pointers.delete(event.pointerId);
      const figure = moved < 5 ? nearest(...place(event)) : null;
      if (figure) listeners.pick(figure);
    });
    canvas.addEventListener('pointercancel', (event) => pointers.delete(event.pointerId));
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  function pinch(pointers, event) {
    const other = [...pointers.values()].find((pointer) => pointer.pointerId !== event.pointerId);
    const last = pointers.get(event.pointerId);
    const apart = (a, b) => Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1;
    const [x, y] = place(event);
    const [otherX, otherY] = place(other);
    zoom(apart(event, other) / apart(last, other), (x + otherX) / 2, (y + otherY) / 2);
  }

  function onWheel(event) {
    event.preventDefault();
    zoom(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) / 200), ...place(event));
  }

  function onKey(event) {
    const step = 60;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (moves[event.key]) pan(...moves[event.key]);
    else if (event.key === '+' || event.key === '=') zoom(1.4);
    else if (event.key === '-') zoom(1 / 1.4);
    else if (event.key === '0') showAll();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  function listen() {
    listenToPointers();
    canvas.addEventListener('wheel', onWheel, { passive: false });
    canvas.addEventListener('keydown', onKey);
    for (const name of ['figures', 'tissue', 'hotspot', 'density']) {
      byId(`layer-${name}`).addEventListener('change', redraw);
    }
    byId('layer-density').addEventListener('change', (event) => {
      byId('density-key').hidden = !event.target.checked;
    });
    byId('zoom-in').addEventListener('click', () => zoom(1.5));
    byId('zoom-out').addEventListener('click', () => zoom(1 / 1.5));
    byId('zoom-all').addEventListener('click', showAll);
    byId('zoom-figure').addEventListener('click', () => selected && goTo(selected));
    new ResizeObserver(resize).observe(canvas);
    window.addEventListener('beforeprint', draw);
  }

  function start(onPick) {
    listeners.pick = onPick;
    thumbnail = Crops.thumbnail(redraw);
    const counts = LABELS.slice(0, 2).map((label) => `${FIGURES.filter((f) => f.called === label).length} ${label}`);
    canvas.setAttribute('aria-label', `Picture of the slide with ${counts.join(' and ')} marked`);
    listen();
    resize();
  }

  function show(figures) {
    visible = new Set(figures);
    redraw();
  }

  // Where a figure is on the canvas, CSS px.
  const placeOf = (figure) => toScreen(figure.x, figure.y);

  return { start, show, select, redraw, placeOf };
})();
