// The review as files: review.csv and GeoJSON as findings.geojson has it.

const Export = (() => {
  const COLUMNS = ['id', 'x_l0', 'y_l0', 'label', 'subtype', 'flag', 'reviewer', 'reviewed_utc'];
  const GREY = [120, 120, 120];

  function csv() {
    // One that is only flagged has no label: no judgement.
    const rows = FIGURES.filter(Store.get).map((figure) => {
      const { label, subtype, flag, utc } = Store.get(figure);
      return [figure.id, figure.xL0, figure.yL0, label, subtype, flag ? 'yes' : '', reviewer(), utc];
    });
    return [COLUMNS, ...rows].map((row) => row.map(cell).join(',')).join('\n') + '\n';
  }

  function cell(value) {
    const text = String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  // All figures, and what else was reviewed; those that were say so.
  function geojson() {
    const features = FIGURES.filter((figure) => figure.isMf || Store.isReviewed(figure)).map(feature);
    return JSON.stringify({ type: 'FeatureCollection', features });
  }

  function feature(figure) {
    const label = Store.labelOf(figure);
    const subtype = Gallery.subtypeOf(figure);
    return {
      type: 'Feature',
      id: figure.id,
      geometry: { type: 'Polygon', coordinates: [circle(figure)] },
      properties: {
        objectType: 'detection',
        name: subtype || label,
        classification: { name: className(figure, label, subtype), color: DATA.colours[label] || GREY },
        isLocked: false,
        measurements: measurements(figure),
        metadata: metadata(figure, subtype),
      },
    };
  }

  // A subtype of the reviewer's own makes a derived class, as QuPath writes it.
  function className(figure, label, subtype) {
    return subtype && subtype !== figure.subtype ? `${label}: ${subtype}` : label;
  }

  function circle(figure) {
    const ring = Array.from({ length: 16 }, (_, i) => {
      const angle = (i * Math.PI) / 8;
      const x = figure.xL0 - DATA.origin[0] + (Math.cos(angle) * DATA.circleUm) / DATA.mpp[0];
      const y = figure.yL0 - DATA.origin[1] + (Math.sin(angle) * DATA.circleUm) / DATA.mpp[1];
      return [Number(x.toFixed(2)), Number(y.toFixed(2))];
    });
    return [...ring, ring[0]];
  }

  function measurements(figure) {
    const found = {};
    if (figure.pMitosis !== null) found.p_mitosis = figure.pMitosis;
    if (figure.pAtypical !== null) found.p_atypical = figure.pAtypical;
    (figure.pSubtypes || []).forEach((p, i) => {
      found[`p_${SUBTYPES[i]}`] = p;
    });
    return found;
  }

  function metadata(figure, subtype) {
    const found = { finding: figure.id };
    if (subtype) found.subtype = subtype;
    if (!Store.isReviewed(figure)) return found;
    const { flag, utc } = Store.get(figure);
    Object.assign(found, { reviewed: 'yes', reviewed_utc: utc });
    if (reviewer()) found.reviewer = reviewer();
    if (flag) found.flag = 'yes';
    return found;
  }

  const reviewer = () => byId('reviewer').value.trim();

  function save(text, type, suffix) {
    const name = `${DATA.name.replace(/[^\p{L}\p{N} .,()+=@#&_-]/gu, '_').slice(0, 100)}.${suffix}`;
    const url = URL.createObjectURL(new Blob([text], { type }));
    make('a', { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    const flagged = FIGURES.filter((f) => Store.isFlagged(f) && !Store.isReviewed(f)).length;
    const without = flagged ? ` ${flagged} flagged without a decision: no label in the file.` : '';
    byId('export-note').textContent = `Saved ${name} with ${Store.reviewed().length} reviewed.${without}`;
  }

  function start() {
    byId('export-csv').addEventListener('click', () => save(csv(), 'text/csv', 'review.csv'));
    byId('export-geojson').addEventListener('click', () => save(geojson(), 'application/geo+json', 'reviewed.geojson'));
  }

  return { start };
})();
