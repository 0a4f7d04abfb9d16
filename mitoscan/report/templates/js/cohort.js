// Sorting and finding slides in the table; without this script the table is there all the same.

const body = document.querySelector('#table tbody');
const rows = [...body.rows];
const headers = [...document.querySelectorAll('#table thead th')];
const collator = new Intl.Collator(undefined, { numeric: true });

const valueOf = (row, column) => row.cells[column].dataset.value;

// What is not defined comes last, whichever way.
function compare(a, b, column, direction) {
  const [left, right] = [valueOf(a, column), valueOf(b, column)];
  if (left === '' || right === '') return (left === '') - (right === '');
  if (headers[column].classList.contains('n')) return (Number(left) - Number(right)) * direction;
  return collator.compare(left, right) * direction;
}

function sortBy(column) {
  const header = headers[column];
  const numeric = header.classList.contains('n');
  const before = header.getAttribute('aria-sort');
  const order = before ? (before === 'ascending' ? 'descending' : 'ascending') : numeric ? 'descending' : 'ascending';
  headers.forEach((other) => other.removeAttribute('aria-sort'));
  header.setAttribute('aria-sort', order);
  rows.sort((a, b) => compare(a, b, column, order === 'ascending' ? 1 : -1));
  body.append(...rows);
}

function filter() {
  const text = document.getElementById('find').value.trim().toLowerCase();
  const flaggedOnly = document.getElementById('only-flagged').checked;
  const flags = headers.length - 1;
  let shown = 0;
  for (const row of rows) {
    const found = row.textContent.toLowerCase().includes(text);
    row.hidden = !found || (flaggedOnly && valueOf(row, flags) === '0');
    shown += row.hidden ? 0 : 1;
  }
  document.getElementById('count').textContent = `${shown} shown`;
}

headers.forEach((header, column) => header.querySelector('button').addEventListener('click', () => sortBy(column)));
document.getElementById('find').addEventListener('input', filter);
document.getElementById('only-flagged').addEventListener('change', filter);
