// The review: what the reader decided, kept in this browser under the slide and the models.
// An entry is { label, subtype, flag, utc }; label '' means flagged only, which is not a review.

const Store = (() => {
  const key = `mitoscan-review:${DATA.key}`;
  const reviewerKey = 'mitoscan-reviewer';
  const known = new Set(FIGURES.map((figure) => figure.id));
  const entries = new Map(load());
  const past = [];
  let kept = true;

  function load() {
    try {
      const stored = JSON.parse(localStorage.getItem(key) || '{}');
      return Object.entries(stored.entries || {}).filter(([id, entry]) => known.has(id) && isEntry(entry));
    } catch {
      return [];
    }
  }

  function isEntry(entry) {
    return (
      entry !== null && typeof entry === 'object' && ['', ...LABELS].includes(entry.label) &&
      ['', ...SUBTYPES].includes(entry.subtype) && typeof entry.utc === 'string'
    );
  }

  function save() {
    try {
      localStorage.setItem(key, JSON.stringify({ slide: DATA.name, entries: Object.fromEntries(entries) }));
      kept = true;
    } catch {
      kept = false;
    }
  }

  const get = (figure) => entries.get(figure.id);
  const isReviewed = (figure) => Boolean(get(figure)?.label);
  const isFlagged = (figure) => Boolean(get(figure)?.flag);
  const labelOf = (figure) => get(figure)?.label || figure.called;
  const isChanged = (figure) => isReviewed(figure) && labelOf(figure) !== figure.called;

  function put(figure, entry) {
    past.push([figure, entries.get(figure.id)]);
    entries.set(figure.id, { ...entry, utc: now() });
    if (!entry.label && !entry.flag) entries.delete(figure.id);
    save();
  }

  function decide(figure, label, subtype) {
    put(figure, { label, subtype: label === NOT_MF ? '' : subtype, flag: isFlagged(figure) });
  }

  function toggleFlag(figure) {
    const { label = '', subtype = '' } = get(figure) || {};
    put(figure, { label, subtype, flag: !isFlagged(figure) });
  }

  // Takes the last step back and gives its figure, or null.
  function undo() {
    if (past.length === 0) return null;
    const [figure, entry] = past.pop();
    if (entry) entries.set(figure.id, entry);
    else entries.delete(figure.id);
    save();
    return figure;
  }

  function clear() {
    entries.clear();
    past.length = 0;
    save();
  }

  const now = () => new Date().toISOString().replace(/\.\d+Z$/, 'Z');
  const reviewed = () => FIGURES.filter(isReviewed);

  function reviewer(name) {
    try {
      if (name !== undefined) localStorage.setItem(reviewerKey, name);
      return localStorage.getItem(reviewerKey) || '';
    } catch {
      return '';
    }
  }

  save(); // finds out whether this browser keeps anything
  return {
    get, isReviewed, isFlagged, isChanged, labelOf, decide, toggleFlag, undo, clear, reviewed, reviewer,
    isKept: () => kept,
  };
})();
