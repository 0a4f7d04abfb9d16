// The selected figure: large, with all that is known of it.

const Detail = (() => {
  function show(figure) {
    byId('detail-title').textContent = figure.isMf
      ? `Figure ${MITOTIC.indexOf(figure) + 1} of ${MITOTIC.length}`
      : 'Not called a figure';
    const image = byId('detail-image');
    image.hidden = !Crops.has(figure);
    byId('detail-none').hidden = Crops.has(figure);
    if (Crops.has(figure)) image.src = Crops.url(figure);
    image.alt = `64 µm about the figure, called ${figure.called}`;
    showCalls(figure);
    showFacts(figure);
    showSubtypes(figure);
  }

  function showCalls(figure) {
    byId('detail-called').replaceChildren(Gallery.markOf(figure.called), ` ${figure.isGiven ? 'reviewed as' : 'called'} ${inWords(figure.called, figure.subtype)}`);
    const verdict = [];
    if (Store.isReviewed(figure)) {
      const { label, subtype } = Store.get(figure);
      verdict.push(Store.isChanged(figure) ? `you: ${inWords(label, subtype)}` : `confirmed${subtype && subtype !== figure.subtype ? ` as ${spaced(subtype)}` : ''}`);
    }
    if (Store.isFlagged(figure)) verdict.push('flagged');
    byId('detail-review').textContent = verdict.join(', ');
    byId('detail-subtype').value = Gallery.subtypeOf(figure);
    document.querySelector('[data-do="flag"]').setAttribute('aria-pressed', String(Store.isFlagged(figure)));
  }

  const inWords = (label, subtype) => (subtype ? `${label}, ${spaced(subtype)}` : label);

  function showFacts(figure) {
    const facts = [
      ['p_atypical', `${score(figure.pAtypical)} (AMF from ${DATA.threshold})`],
      ['p_mitosis', `${score(figure.pMitosis)} (MF from ${DATA.thresholdMitosis})`],
      ['Hot spot', figure.inHotspot ? 'inside' : 'outside'],
      ['Place', `${(figure.x / 1000).toFixed(3)}, ${(figure.y / 1000).toFixed(3)} mm`],
      ['Level-0 px', `${figure.xL0.toFixed(0)}, ${figure.yL0.toFixed(0)}`],
    ];
    byId('detail-facts').replaceChildren(
      ...facts.flatMap(([name, value]) => [make('dt', {}, name), make('dd', {}, value)]),
    );
  }

  function showSubtypes(figure) {
    const bars = byId('detail-subtypes');
    bars.hidden = !figure.pSubtypes;
    if (!figure.pSubtypes) return;
    bars.replaceChildren(
      ...SUBTYPES.map((name, i) => {
        const bar = make('meter', { min: 0, max: 1, value: figure.pSubtypes[i], 'aria-label': spaced(name) });
        return make('p', {}, make('span', {}, spaced(name)), bar, make('span', {}, figure.pSubtypes[i].toFixed(2)));
      }),
    );
  }

  return { show };
})();
