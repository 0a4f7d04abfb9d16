// Selection, decisions and keys: what ties the parts together.

let selected = null;

function select(figure) {
  if (!figure) return;
  selected = figure;
  Gallery.select(figure);
  Detail.show(figure);
  SlideMap.select(figure);
}

const ACTIONS = {
  confirm: () => decide(Store.labelOf(selected), Gallery.subtypeOf(selected)),
  AMF: () => relabel(AMF),
  NMF: () => relabel(NMF),
  [NOT_MF]: () => relabel(NOT_MF),
  flag: () => {
    Store.toggleFlag(selected);
    changed(selected);
  },
  undo: () => {
    const figure = Store.undo();
    if (!figure) return;
    changed(figure);
    select(figure);
  },
  next: () => select(Gallery.neighbour(selected, 1)),
  previous: () => select(Gallery.neighbour(selected, -1)),
};

// A subtype goes with its label only.
function relabel(label) {
  const subtype = Gallery.subtypeOf(selected);
  decide(label, subtype && groupOf(subtype) === label ? subtype : '');
}

function setSubtype(subtype) {
  if (subtype) decide(groupOf(subtype), subtype);
  else if (Store.labelOf(selected) !== NOT_MF) decide(Store.labelOf(selected), '');
}

function decide(label, subtype) {
  const figure = selected;
  const next = byId('advance').checked ? Gallery.neighbour(figure, 1) : figure;
  Store.decide(figure, label, subtype);
  changed(figure);
  select(next);
}

function changed(figure) {
  const filtered = byId('filter-review').value || [AMF, NMF].includes(byId('filter-label').value);
  if (filtered) Gallery.refresh();
  else Gallery.update(figure);
  if (figure === selected) Detail.show(figure);
  SlideMap.redraw();
  showProgress();
}

function showProgress() {
  const done = MITOTIC.filter(Store.isReviewed).length;
  const relabelled = FIGURES.filter(Store.isChanged).length;
  byId('progress').max = Math.max(1, MITOTIC.length);
  byId('progress').value = done;
  byId('review').classList.toggle('begun', Store.reviewed().length > 0);
  byId('detail-progress').textContent = `${done} reviewed`;
  byId('progress-text').textContent = `${done} of ${MITOTIC.length} figures reviewed, ${relabelled} changed`;
  byId('reviewed-numbers').textContent = Store.reviewed().length ? reviewedInWords() : '';
  byId('storage-note').textContent = Store.isKept()
    ? 'Your decisions are kept in this browser on this machine. Save them to a file to pass them on.'
    : 'This browser keeps nothing for this page: save your review before you close it.';
}

function reviewedInWords() {
  const labels = FIGURES.map(Store.labelOf);
  const amf = labels.filter((label) => label === AMF).length;
  const nmf = labels.filter((label) => label === NMF).length;
  const open = MITOTIC.filter((figure) => !Store.isReviewed(figure)).length;
  const rest = open ? ` The ${open} not reviewed count as called.` : '';
  return `With your review: ${rateInWords(amf, amf + nmf)}.${rest}`;
}

const KEYS = {
  Enter: 'confirm', c: 'confirm', a: 'AMF', n: 'NMF', x: NOT_MF, f: 'flag', u: 'undo',
  j: 'next', k: 'previous', ArrowRight: 'next', ArrowLeft: 'previous',
};

function onKey(event) {
  const undo = (event.ctrlKey || event.metaKey) && event.key === 'z';
  if (!selected || isTyping(event.target) || (!byId('keys').checked && !undo)) return;
  if (!undo && (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented)) return;
  if (event.key === 'Enter' && event.target.closest('button, summary, a')) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const subtype = SUBTYPES[Number(key) - 1];
  if (undo) ACTIONS.undo();
  else if (subtype) setSubtype(subtype);
  else if (KEYS[key]) ACTIONS[KEYS[key]]();
  else return;
  event.preventDefault();
}

function isTyping(target) {
  if (target.tagName === 'INPUT') return target.type !== 'checkbox';
  return ['SELECT', 'TEXTAREA'].includes(target.tagName);
}

function listen() {
  document.addEventListener('keydown', onKey);
  for (const button of document.querySelectorAll('[data-do]')) {
    button.addEventListener('click', () => selected && ACTIONS[button.dataset.do]());
  }
  byId('detail-subtype').addEventListener('change', (event) => setSubtype(event.target.value));
  byId('reviewer').value = Store.reviewer();
  byId('reviewer').addEventListener('change', (event) => Store.reviewer(event.target.value.trim()));
  byId('clear-review').addEventListener('click', () => {
    if (!window.confirm('Forget all decisions on this slide that this browser keeps?')) return;
    Store.clear();
    Gallery.refresh();
    showProgress();
    if (selected) Detail.show(selected);
  });
}

function start() {
  for (const id of ['workbench', 'review', 'threshold-section']) byId(id).hidden = false;
  Threshold.start(() => byId('filter-label').value === 'moved' && Gallery.refresh());
  SlideMap.start(select);
  Gallery.start({ pick: select, change: SlideMap.show });
  Export.start();
  listen();
  showProgress();
  byId('detail').hidden = FIGURES.length === 0;
  select(Gallery.first());
}

start();
