// The crops as cards, filtered and sorted; a list box whose cards are made as they come into sight.

const Gallery = (() => {
  const list = byId('gallery');
  const CHUNK = 60;
  const cards = new Map(); // figure → card
  const listeners = { pick: () => {}, change: () => {} };
  let shown = []; // figures in order
  let selected = null;

  const filters = {
    MF: (figure) => figure.isMf,
    AMF: (figure) => figure.isMf && Store.labelOf(figure) === AMF,
    NMF: (figure) => figure.isMf && Store.labelOf(figure) === NMF,
    moved: (figure) => figure.isMf && isAtypical(figure, Threshold.value()) !== (figure.called === AMF),
    below: (figure) => !figure.isMf,
  };
  const reviews = {
    '': () => true,
    open: (figure) => !Store.isReviewed(figure),
    done: Store.isReviewed,
    changed: Store.isChanged,
    flagged: Store.isFlagged,
  };
  const uncertainty = (figure) => Math.abs(figure.pAtypical - DATA.threshold);
  const orders = {
    p_atypical: (a, b) => b.pAtypical - a.pAtypical,
    '-p_atypical': (a, b) => a.pAtypical - b.pAtypical,
    p_mitosis: (a, b) => b.pMitosis - a.pMitosis,
    '-p_mitosis': (a, b) => a.pMitosis - b.pMitosis,
    uncertainty: (a, b) => uncertainty(a) - uncertainty(b),
    subtype: (a, b) => subtypeRank(a) - subtypeRank(b) || b.pAtypical - a.pAtypical,
    place: (a, b) => a.index - b.index,
  };

  const subtypeOf = (figure) => (Store.isReviewed(figure) ? Store.get(figure).subtype : figure.subtype);
  const subtypeRank = (figure) => {
    const at = SUBTYPES.indexOf(subtypeOf(figure));
    return at < 0 ? SUBTYPES.length : at;
  };

  // Filters and sorts anew.
  function refresh() {
    const label = filters[byId('filter-label').value];
    const review = reviews[byId('filter-review').value];
    const hotspotOnly = byId('filter-hotspot').checked;
    shown = FIGURES.filter((f) => label(f) && review(f) && (!hotspotOnly || f.inHotspot));
    shown.sort((a, b) => orders[byId('sort').value](a, b) || a.index - b.index);
    cards.clear();
    list.replaceChildren();
    list.scrollTop = 0;
    grow();
    count();
    mark();
    listeners.change(shown);
  }

  function count() {
    const without = shown.filter((figure) => !Crops.has(figure)).length;
    byId('gallery-count').textContent = `${shown.length} shown${without ? `, ${without} of them without a picture` : ''}`;
  }

  // On paper only what has been on the screen: thousands of crops would be hundreds of pages.
  function notePrinted() {
    if (cards.size === shown.length) return;
    byId('gallery-count').textContent = `The first ${cards.size} of ${shown.length} in this order`;
  }

  function grow(upTo = cards.size + CHUNK) {
    const next = shown.slice(cards.size, upTo);
    for (const figure of next) {
      const card = makeCard(figure);
      cards.set(figure, card);
      list.append(card);
    }
    if (cards.size < shown.length) end.observe(list.lastElementChild);
  }

  const end = new IntersectionObserver(
    (seen) => {
      for (const entry of seen) {
        if (!entry.isIntersecting) continue;
        end.unobserve(entry.target);
        if (entry.target === list.lastElementChild) grow();
      }
    },
    { root: null, rootMargin: '400px' },
  );

  function makeCard(figure) {
    const card = make('li', { role: 'option', id: `figure-${figure.index}`, class: 'card', 'aria-selected': 'false' });
    const view = make('span', { class: 'view' });
    if (Crops.has(figure)) {
      view.append(make('img', { src: Crops.url(figure), alt: '', decoding: 'async' }));
      view.append(make('span', { class: 'box', 'aria-hidden': 'true' }));
    } else {
      view.append(make('span', { class: 'none' }, 'no picture'));
    }
    card.append(view, make('span', { class: 'caption' }));
    card.addEventListener('click', () => listeners.pick(figure));
    describe(figure, card);
    return card;
  }

  function describe(figure, card) {
    const label = Store.labelOf(figure);
    const caption = card.querySelector('.caption');
    caption.replaceChildren(markOf(label), ` ${score(figure.pAtypical)}`);
    const subtype = subtypeOf(figure);
    if (subtype) caption.append(make('span', { class: 'subtype' }, spaced(subtype)));
    card.classList.toggle('reviewed', Store.isReviewed(figure));
    card.classList.toggle('changed', Store.isChanged(figure));
    card.classList.toggle('flagged', Store.isFlagged(figure));
    const review = Store.isReviewed(figure) ? `, reviewed as ${label}` : '';
    const flag = Store.isFlagged(figure) ? ', flagged' : '';
    card.setAttribute(
      'aria-label',
      `${figure.called}, p atypical ${score(figure.pAtypical)}, p mitosis ${score(figure.pMitosis)}` +
        `${subtype ? `, ${spaced(subtype)}` : ''}${review}${flag}`,
    );
  }

  function markOf(label) {
    const svg = makeSvg('svg', { viewBox: '-8 -8 16 16', class: 'mark', 'aria-hidden': 'true' });
    if (label === AMF) svg.append(makeSvg('path', { class: 'amf', d: 'M-7 0 0-7 7 0 0 7Z' }));
    else if (label === NMF) svg.append(makeSvg('circle', { class: 'nmf', r: 6 }));
    else svg.append(makeSvg('path', { class: 'not', d: 'M-5-5 5 5M-5 5 5-5' }));
    return svg;
  }

  function update(figure) {
    const card = cards.get(figure);
    if (card) describe(figure, card);
  }

  function select(figure) {
    selected = figure;
    const at = shown.indexOf(figure);
    if (at >= cards.size) grow(at + CHUNK);
    mark();
    const card = cards.get(figure);
    if (card) scrollTo(card);
  }

  // Within the list only: the page itself stays where it is.
  function scrollTo(card) {
    const [top, bottom] = [card.offsetTop, card.offsetTop + card.offsetHeight];
    if (top < list.scrollTop) list.scrollTop = top - 8;
    else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight + 8;
  }

  function mark() {
    for (const card of list.querySelectorAll('[aria-selected="true"]')) card.setAttribute('aria-selected', 'false');
    const card = cards.get(selected);
    card?.setAttribute('aria-selected', 'true');
    if (card) list.setAttribute('aria-activedescendant', card.id);
    else list.removeAttribute('aria-activedescendant');
  }

  // The figure so many places after `figure`; the first where that one is not shown.
  function neighbour(figure, step) {
    const at = shown.indexOf(figure);
    return at < 0 ? shown[0] : shown[Math.min(Math.max(at + step, 0), shown.length - 1)];
  }

  function columns() {
    return getComputedStyle(list).gridTemplateColumns.split(' ').length;
  }

  function onKey(event) {
    const steps = { ArrowDown: columns(), ArrowUp: -columns(), Home: -shown.length, End: shown.length };
    if (steps[event.key] === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    const figure = neighbour(selected, steps[event.key]);
    if (figure) listeners.pick(figure);
    event.preventDefault();
  }

  function start({ pick, change }) {
    Object.assign(listeners, { pick, change });
    for (const id of ['filter-label', 'filter-review', 'filter-hotspot', 'sort']) {
      byId(id).addEventListener('change', refresh);
    }
    window.addEventListener('beforeprint', notePrinted);
    window.addEventListener('afterprint', count);
    byId('show-box').addEventListener('change', (event) => {
      document.body.classList.toggle('no-box', !event.target.checked);
    });
    list.addEventListener('keydown', onKey);
    for (const option of byId('filter-label').options) {
      if (option.value !== 'moved') option.text += ` (${FIGURES.filter(filters[option.value]).length})`;
    }
    refresh();
  }

  return { start, refresh, update, select, neighbour, markOf, subtypeOf, first: () => shown[0] };
})();
