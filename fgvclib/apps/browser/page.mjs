// The page's logic: photo -> locate.onnx (A, mask, theta) -> classify.onnx (crop, logits), drawn after every change.
import * as ort from "./ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href };
const element = (id) => document.getElementById(id);
const MAGMA = ["#000004", "#221150", "#5f187f", "#982d80", "#d3436e", "#f8765c", "#febb81", "#fcfdbf"];
const SHOWN = 300; // pixels of a panel
let system, locate, classify, image, picture;

async function start() {
  system = await (await fetch("system.json")).json();
  [locate, classify] = await Promise.all(["locate", "classify"].map((name) => ort.InferenceSession.create(`${name}.onnx`)));
  system.samples.forEach((name, i) => {
    const thumbnail = Object.assign(document.createElement("button"), { type: "button" });
    thumbnail.append(Object.assign(new Image(), { src: name, alt: `sample ${i + 1}` }));
    thumbnail.onclick = () => load(fetch(name).then((answer) => answer.blob()));
    element("samples").append(thumbnail);
  });
  element("seen-at").textContent = ` at ${system.attnet_size}×${system.attnet_size} pixels`;
  element("tau").value = system.tau;
  element("tau").oninput = update;
  element("reset").onclick = () => { element("tau").value = system.tau; update(); };
  element("file").onchange = (event) => { if (event.target.files[0]) load(event.target.files[0]); };
  document.ondragover = (event) => { event.preventDefault(); document.body.classList.add("over"); };
  document.ondragleave = () => document.body.classList.remove("over");
  document.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    if (event.dataTransfer.files[0]) load(event.dataTransfer.files[0]);
  };
  await load(fetch(system.samples[0]).then((answer) => answer.blob()));
}

// A photo of any size becomes a normalised square, as in Python: the aspect ratio is not kept.
async function load(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(await file);
  } catch {
    element("status").textContent = "This file cannot be read as a photo; choose a JPEG, PNG or WebP.";
    return;
  }
  const side = system.size;
  picture = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const context = picture.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff"; // under transparent parts
  context.fillRect(0, 0, side, side);
  context.drawImage(bitmap, 0, 0, side, side);
  const pixels = context.getImageData(0, 0, side, side).data;
  const values = new Float32Array(3 * side * side);
  for (let channel = 0; channel < 3; channel++)
    for (let i = 0; i < side * side; i++)
      values[channel * side * side + i] = (pixels[4 * i + channel] / 255 - system.mean[channel]) / system.std[channel];
  image = new ort.Tensor("float32", values, [1, 3, side, side]);
  await update();
}

let running = false, again = false;
async function update() { // one pass at a time; the slider's last value always gets its turn
  if (!image) return;
  if (running) { again = true; return; }
  running = true;
  try {
    await look();
  } catch (error) {
    const reason = error.message ?? error; // the runtime also throws numbers
    element("status").textContent = `The networks gave no answer (${reason}); try again, or reload the page.`;
  } finally {
    running = false;
  }
  if (again) { again = false; await update(); }
}

async function look() {
  const began = performance.now();
  const tau = Number(element("tau").value);
  const { attention, mask, theta } = await locate.run({ images: image, tau: new ort.Tensor("float32", [tau], [1]) });
  const crop = await classify.run({ images: image, theta });
  const whole = await classify.run({ images: image, theta: new ort.Tensor("float32", [1, 1, 0, 0], [1, 4]) });
  draw(tau, attention, mask, theta, crop, whole);
  const first = system.classes[crop.logits.data.indexOf(Math.max(...crop.logits.data))];
  element("status").textContent = `${first}, after ${Math.round(performance.now() - began)} ms`;
  window.answer = { theta: [...theta.data], attention: [...attention.data], logits: [...crop.logits.data], tau };
}

function draw(tau, attention, mask, theta, crop, whole) {
  element("tau-value").textContent = tau.toFixed(2);
  const context = surface("photo");
  context.drawImage(picture, 0, 0, SHOWN, SHOWN);
  const hull = exactBox(attention, tau);
  if (hull) frame(context, hull, "#56b4e9", [2, 4]);
  const [sx, sy, tx, ty] = theta.data;
  frame(context, [(tx - sx + 1) / 2, (ty - sy + 1) / 2, (tx + sx + 1) / 2, (ty + sy + 1) / 2], "#d55e00", [8, 5]);
  cells("attention", attention, (value) => MAGMA[Math.min(7, Math.floor(value * 8))], (value) => value >= tau);
  cells("mask", mask, (value) => `rgb(${Array(3).fill(Math.round(255 * value)).join()})`, () => false);
  show("crop", crop.crop);
  answers(softmax(whole.logits.data), softmax(crop.logits.data));
}

function surface(id) {
  const canvas = Object.assign(element(id), { width: SHOWN, height: SHOWN });
  return canvas.getContext("2d");
}

function frame(context, [x1, y1, x2, y2], colour, dash) {
  for (const [style, width, pattern] of [["rgba(255,255,255,.8)", 5, []], [colour, 3, dash]]) {
    Object.assign(context, { strokeStyle: style, lineWidth: width });
    context.setLineDash(pattern);
    context.strokeRect(x1 * SHOWN, y1 * SHOWN, (x2 - x1) * SHOWN, (y2 - y1) * SHOWN);
  }
}

function cells(id, map, colour, outlined) {
  const context = surface(id), n = map.dims[3], side = SHOWN / n;
  map.data.forEach((value, i) => {
    const x = (i % n) * side, y = Math.floor(i / n) * side;
    context.fillStyle = colour(value);
    context.fillRect(x, y, side + 1, side + 1);
  });
  Object.assign(context, { strokeStyle: "#56b4e9", lineWidth: 2 });
  map.data.forEach((value, i) => {
    if (outlined(value)) context.strokeRect((i % n) * side + 1, Math.floor(i / n) * side + 1, side - 2, side - 2);
  });
}

function exactBox(map, tau) { // the smallest rectangle that holds all cells >= tau, at cell edges
  const n = map.dims[3], columns = [], rows = [];
  map.data.forEach((value, i) => { if (value >= tau) { columns.push(i % n); rows.push(Math.floor(i / n)); } });
  if (!columns.length) return null;
  return [Math.min(...columns) / n, Math.min(...rows) / n, (Math.max(...columns) + 1) / n, (Math.max(...rows) + 1) / n];
}

function show(id, tensor) {
  const side = tensor.dims[3], small = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const pixels = new ImageData(side, side);
  for (let i = 0; i < side * side; i++) {
    for (let channel = 0; channel < 3; channel++)
      pixels.data[4 * i + channel] = 255 * (tensor.data[channel * side * side + i] * system.std[channel] + system.mean[channel]);
    pixels.data[4 * i + 3] = 255;
  }
  small.getContext("2d").putImageData(pixels, 0, 0);
  surface(id).drawImage(small, 0, 0, SHOWN, SHOWN);
}

function softmax(logits) {
  const top = Math.max(...logits), powers = [...logits].map((value) => Math.exp(value - top));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((value) => value / sum);
}

function answers(whole, crop) {
  const order = [...crop.keys()].sort((a, b) => crop[b] - crop[a]).slice(0, 5);
  const bar = (p, kind) => `<td><span class="bar ${kind}" style="width:${(8 * p).toFixed(2)}em"></span> ${Math.round(100 * p)} %</td>`;
  const row = (k) => `<tr><th scope="row"></th>${bar(whole[k], "whole")}${bar(crop[k], "crop")}</tr>`;
  element("answers").innerHTML = `<table><tr><th></th><th>whole photo</th><th>crop</th></tr>${order.map(row).join("")}</table>`;
  element("answers").querySelectorAll("th[scope=row]").forEach((cell, i) => { cell.textContent = system.classes[order[i]]; });
}

start().catch((error) => { element("status").textContent = `The page could not start: ${error.message}`; });
