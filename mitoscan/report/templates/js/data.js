// What the page works on, read once, and small helpers. Text from outside reaches the document only as
// textContent or attribute values, never as markup.

const byId = (id) => document.getElementById(id);
const readJson = (name) => JSON.parse(byId(`json-${name}`).textContent);

const DATA = readJson('data');
const AMF = 'AMF';
const NMF = 'NMF';
const NOT_MF = 'not MF';
const LABELS = [AMF, NMF, NOT_MF];
const SUBTYPES = [...DATA.normal, ...DATA.atypical];
const FIGURES = readFigures(DATA.findings);
const MITOTIC = FIGURES.filter((figure) => figure.isMf);

function readFigures(columns) {
  const scores = SUBTYPES.map((name) => columns[`p_${name}`]);
  return columns.id.map((id, i) => ({
    index: i,
    id,
    xL0: columns.x_l0[i],
    yL0: columns.y_l0[i],
    // The map works in µm, in which pixels that are not square are.
    x: columns.x_l0[i] * DATA.mpp[0],
    y: columns.y_l0[i] * DATA.mpp[1],
    pMitosis: columns.p_mitosis[i],
    pAtypical: columns.p_atypical[i],
    isMf: columns.is_mf[i],
    called: columns.label[i] || NOT_MF,
    subtype: columns.subtype[i],
    inHotspot: columns.in_hotspot[i],
    // A label that a reviewer gave earlier: no threshold changes it.
    isGiven: Boolean(columns.reviewed?.[i]),
    pSubtypes: scores[0] && scores[0][i] !== null ? scores.map((column) => column[i]) : null,
  }));
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  setAll(element, attributes);
  element.append(...children);
  return element;
}

function makeSvg(tag, attributes = {}) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  setAll(element, attributes);
  return element;
}

function setAll(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}

const spaced = (name) => name.replaceAll('_', ' ');
const score = (p) => (p === null ? '–' : p.toFixed(3));
const percent = (share) => `${(share * 100).toFixed(1)} %`;
const groupOf = (subtype) => (DATA.atypical.includes(subtype) ? AMF : NMF);
