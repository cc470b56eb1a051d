// Where to draw what: a layered layout of an acyclic graph from top to bottom. Ranks by longest path, order by barycentres,
// places by least squares. The same graph is always drawn the same.

const GAP = { rank: 30, item: 16, bend: 10, margin: 14 };
const SWEEPS = 24;

/**
 * Give every item (width, height) its centre x, y, and every edge {from, to} (numbers of items) the points of its line.
 * Returns the size of the whole.
 */
function layout(items, edges) {
  const ranks = rankOf(items.length, edges);
  const cells = items.map((item, i) => ({
    item,
    rank: ranks[i],
    width: item.width,
    height: item.height,
    up: [],
    down: [],
  }));
  const chains = edges.map((edge) => chain(cells, edge));
  const rows = inRows(cells);
  order(rows);
  place(rows);
  return draw(items, cells, rows, edges, chains);
}

/** Ranks: below all makers; then as near to the readers as costs no length. */
function rankOf(count, edges) {
  const [makers, readers] = [Array.from({ length: count }, () => []), Array.from({ length: count }, () => [])];
  for (const { from, to } of edges) {
    readers[from].push(to);
    makers[to].push(from);
  }
  const waiting = makers.map((m) => m.length);
  const sorted = [...waiting.keys()].filter((i) => !waiting[i]);
  const ranks = new Array(count).fill(0);
  for (const i of sorted) {
    for (const reader of readers[i]) {
      ranks[reader] = Math.max(ranks[reader], ranks[i] + 1);
      if (!--waiting[reader]) sorted.push(reader);
    }
  }
  for (const i of sorted.reverse()) {
    if (readers[i].length && readers[i].length >= makers[i].length)
      ranks[i] = Math.min(...readers[i].map((r) => ranks[r])) - 1;
  }
  const least = Math.min(...ranks);
  return ranks.map((rank) => rank - least);
}

/** The cells of an edge: a bend in each rank that it passes. */
function chain(cells, edge) {
  const found = [cells[edge.from]];
  for (let rank = cells[edge.from].rank + 1; rank < cells[edge.to].rank; rank++) {
    const bend = { item: null, rank, width: 0, height: 0, up: [], down: [] };
    cells.push(bend);
    found.push(bend);
  }
  found.push(cells[edge.to]);
  for (let i = 1; i < found.length; i++) {
    found[i - 1].down.push(found[i]);
    found[i].up.push(found[i - 1]);
  }
  return found;
}

function inRows(cells) {
  const rows = Array.from({ length: 1 + Math.max(...cells.map((c) => c.rank)) }, () => []);
  const seen = new Set();
  const visit = (cell) => {
    // depth first, so that what belongs together starts together
    if (seen.has(cell)) return;
    seen.add(cell);
    cell.slot = rows[cell.rank].push(cell) - 1;
    [...cell.down, ...cell.up].forEach(visit);
  };
  cells.forEach(visit);
  return rows;
}

const mean = (values) => values.reduce((sum, v) => sum + v, 0) / values.length;

/** Sort rows by the mean place of their neighbours, downwards and upwards, and keep the order with the fewest crossings. */
function order(rows) {
  let best = crossings(rows);
  let kept = rows.map((row) => [...row]);
  for (let sweep = 0; sweep < SWEEPS && best; sweep++) {
    const side = sweep % 2 ? "down" : "up";
    for (const row of sweep % 2 ? [...rows].reverse() : rows) {
      const key = new Map(
        row.map((cell) => [cell, cell[side].length ? mean(cell[side].map((c) => c.slot)) : cell.slot]),
      );
      row.sort((a, b) => key.get(a) - key.get(b) || a.slot - b.slot);
      row.forEach((cell, slot) => (cell.slot = slot));
    }
    const count = crossings(rows);
    if (count < best) [best, kept] = [count, rows.map((row) => [...row])];
  }
  kept.forEach((row, rank) => row.forEach((cell, slot) => ((rows[rank][slot] = cell), (cell.slot = slot))));
}

function crossings(rows) {
  let count = 0;
  for (const row of rows) {
    const ends = row.flatMap((cell) => cell.down.map((other) => other.slot).sort((a, b) => a - b));
    for (let i = 0; i < ends.length; i++) for (let j = i + 1; j < ends.length; j++) count += ends[i] > ends[j];
  }
  return count;
}

/** Centres: each row as near to the places that its cells want as its order and the gaps allow. */
function place(rows) {
  for (const row of rows)
    settle(
      row,
      row.map(() => 0),
    );
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    const sides = [["up"], ["down"], ["up", "down"]][sweep % 3];
    for (const row of sweep % 3 === 1 ? [...rows].reverse() : rows) {
      settle(
        row,
        row.map((cell) => {
          const near = sides.flatMap((side) => cell[side]);
          return near.length ? mean(near.map((c) => c.x)) : cell.x;
        }),
      );
    }
  }
}

/** Least squares with gaps: cells that would overlap move as one block (pool adjacent violators). Bends hold their line. */
function settle(row, wanted) {
  const blocks = [];
  let offset = 0;
  row.forEach((cell, i) => {
    if (i) offset += (row[i - 1].width + cell.width) / 2 + (row[i - 1].item && cell.item ? GAP.item : GAP.bend);
    const weight = cell.item ? 1 : 4;
    let block = { at: wanted[i] - offset, weight, cells: [[cell, offset]] };
    while (blocks.length && blocks[blocks.length - 1].at > block.at) {
      const before = blocks.pop();
      const sum = before.weight + block.weight;
      const at = (before.at * before.weight + block.at * block.weight) / sum;
      block = { at, weight: sum, cells: [...before.cells, ...block.cells] };
    }
    blocks.push(block);
  });
  for (const { at, cells } of blocks) for (const [cell, shift] of cells) cell.x = at + shift;
}

/** Coordinates of items and lines, all positive. */
function draw(items, cells, rows, edges, chains) {
  const left = Math.min(...cells.map((c) => c.x - c.width / 2)) - GAP.margin;
  let top = GAP.margin;
  for (const row of rows) {
    const height = Math.max(...row.map((c) => c.height));
    for (const cell of row) Object.assign(cell, { x: Math.round(cell.x - left), y: top + height / 2, band: height });
    top += height + GAP.rank;
  }
  items.forEach((item, i) =>
    Object.assign(item, { x: cells[i].x, y: cells[i].y, rank: cells[i].rank, slot: cells[i].slot }),
  );
  edges.forEach((edge, i) => {
    const [first, last] = [chains[i][0], chains[i][chains[i].length - 1]];
    const points = [[end(chains, chains[i], 0), first.y + first.height / 2, first.y + first.band / 2]];
    for (const bend of chains[i].slice(1, -1)) points.push([bend.x, bend.y - bend.band / 2, bend.y + bend.band / 2]);
    points.push([end(chains, chains[i], 1), last.y - last.band / 2, last.y - last.height / 2]);
    edge.points = points; // [x, from y, to y]: straight down each rank; curves between ranks
  });
  return { width: Math.max(...cells.map((c) => c.x + c.width / 2)) + GAP.margin, height: top - GAP.rank + GAP.margin };
}

/** Where on its item a line starts (side 0) or ends (side 1): those of one item stand beside each other. */
function end(chains, own, side) {
  const [cell, next] = side ? [own[own.length - 1], own[own.length - 2]] : [own[0], own[1]];
  const beside = chains.filter((c) => c[side ? c.length - 1 : 0] === cell);
  const rank = (c) => (side ? c[c.length - 2] : c[1]).x;
  beside.sort((a, b) => rank(a) - rank(b) || chains.indexOf(a) - chains.indexOf(b));
  const room = Math.min(cell.width * 0.6, 22 * (beside.length - 1));
  return cell.x + (beside.length > 1 ? room * (beside.indexOf(own) / (beside.length - 1) - 0.5) : 0);
}
