// Charts on a canvas, in the colours of the page.

function prepare(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = window.devicePixelRatio || 1;
  const [pixelWidth, pixelHeight] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== pixelWidth || canvas.height !== pixelHeight) {
    canvas.width = pixelWidth;
    canvas.height = pixelHeight;
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  const style = getComputedStyle(canvas);
  return { context, width, height, scale, color: (name) => style.getPropertyValue(`--${name}`) };
}

/** Draws pairs of levels from 0 to 60, the newest on the right: inbound upwards, outbound downwards. */
export function drawWave(canvas, levels, most) {
  const { context, width, height, scale, color } = prepare(canvas);
  const middle = height / 2;
  const step = (width * 2) / most;
  const left = width - (levels.length / 2) * step;
  for (const [side, name] of [[0, "in"], [1, "out"]]) {
    context.fillStyle = color(name);
    for (let index = 0; index * 2 < levels.length; index += 1) {
      const length = (levels[index * 2 + side] / 60) * (middle - 3);
      const [from, to] = [index, index + 1].map((at) => Math.round((left + at * step) * scale) / scale); // no gaps
      context.fillRect(from, side ? middle : middle - length, to - from, length);
    }
  }
  context.fillStyle = color("line");
  context.fillRect(0, middle - 0.5, width, 1);
}

/** Draws a rate for each of the last seconds, the limit if it is near, and a label. */
export function drawRates(canvas, rates, limit, seconds, label) {
  const { context, width, height, color } = prepare(canvas);
  const highest = Math.max(1, ...rates);
  const top = limit !== null && limit < highest * 4 ? Math.max(highest, limit) * 1.1 : highest * 1.25;
  const base = height - 16;
  const y = (value) => base - (value / top) * (base - 14);
  const x = (index) => width - ((rates.length - 1 - index) * width) / (seconds - 1);
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = color("line");
  context.fillRect(0, base, width, 1);
  if (rates.length) {
    context.beginPath();
    rates.forEach((rate, index) => context.lineTo(x(index), y(rate)));
    context.strokeStyle = color("accent");
    context.lineWidth = 1.75;
    context.lineJoin = "round";
    context.stroke();
    context.lineTo(x(rates.length - 1), base);
    context.lineTo(x(0), base);
    context.globalAlpha = 0.14;
    context.fillStyle = color("accent");
    context.fill();
    context.globalAlpha = 1;
  }
  context.fillStyle = color("soft");
  if (limit !== null && limit <= top) {
    context.strokeStyle = color("soft");
    context.lineWidth = 1;
    context.setLineDash([4, 4]);
    context.beginPath();
    context.moveTo(0, y(limit));
    context.lineTo(width, y(limit));
    context.stroke();
    context.setLineDash([]);
  }
  context.textAlign = "left";
  context.fillText("a minute ago", 0, height - 3);
  context.textAlign = "right";
  context.fillText("now", width, height - 3);
  context.fillText(label, width, 10);
}
