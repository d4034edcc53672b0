// The page: what is pressed starts and ends a Call; what a Call tells is shown.

import { Call } from "./call.js";
import { Levels } from "./levels.js";
import * as words from "./words.js";

const $ = (id) => document.getElementById(id);
const PAUSE_FRAMES = 25; // 2 s without a word begin a new paragraph
const MAX_PARAGRAPHS = 100;

let call = null;
let muted = false;
let startedAt = 0;
let clockTimer;
let countdownTimer;
let quietTimer;
let lastFrame = -Infinity;
let configuration = { iceServers: [], personas: [] };

const levels = new Levels((who, db) => {
  document.documentElement.style.setProperty(`--level-${who}`, ((db + 60) / 60).toFixed(3));
  $(who).setAttribute("aria-valuenow", Math.round(db));
  $(who).setAttribute("aria-valuetext", words.level(db));
});

function show(state) {
  document.body.dataset.state = state;
  const active = state === "asking" || state === "connecting" || state === "talking" || state === "shaky";
  if (state === "asking") document.body.dataset.state = "connecting";
  $("status").textContent = words.STATUS[state === "talking" && muted ? "muted" : state];
  $("call").querySelector("span").textContent = !active ? "Call" : state === "talking" || state === "shaky" ? "Hang up" : "Cancel";
  $("mute").hidden = !(state === "talking" || state === "shaky");
  $("persona-field").hidden = active || configuration.personas.length < 2;
}

function showProblem({ problem, said, retryAfter }) {
  const { title, text } = words.PROBLEM[problem](said);
  show("failed");
  $("notice-title").textContent = title;
  $("notice-text").textContent = text;
  $("notice-retry").textContent = retryAfter ? words.retryIn(retryAfter) : "";
  $("notice").hidden = false;
  if (retryAfter) countDown(retryAfter);
}

/** The seconds are seen, not read out one by one: a screen reader hears the first and the last word. */
function countDown(left) {
  $("call").disabled = true;
  $("countdown").hidden = false;
  const tick = () => {
    $("countdown").textContent = words.countdown(left);
    if (left-- > 0) return;
    clearInterval(countdownTimer);
    $("call").disabled = false;
    $("status").textContent = words.RETRY_NOW;
    if (document.activeElement === document.body) $("call").focus();
  };
  tick();
  countdownTimer = setInterval(tick, 1000);
}

function clearNotice() {
  clearInterval(countdownTimer);
  $("notice").hidden = $("countdown").hidden = true;
}

function placeCall() {
  clearNotice();
  setMuted(false);
  lastFrame = -Infinity;
  $("said").replaceChildren();
  if (!("RTCPeerConnection" in window)) return showProblem({ problem: "tooOld" });
  show("asking");
  call = new Call(configuration.iceServers, $("persona").value || null, (kind, detail) => HEARD[kind](detail));
  call.start();
}

const HEARD = {
  microphone: (stream) => levels.watch("you", stream),
  track: (stream) => {
    $("speaker").srcObject = stream;
    $("speaker").play().catch(() => {});
    levels.watch("agent", stream);
  },
  connecting: () => show("connecting"),
  talking: () => {
    if (!startedAt) {
      startedAt = performance.now();
      clockTimer = setInterval(showClock, 500);
    }
    showClock();
    show("talking");
  },
  shaky: () => show("shaky"),
  text: ({ text, frame }) => say(text, frame),
  stats: showStats,
  ended: () => {
    finish();
    show("ended");
  },
  problem: (detail) => {
    finish();
    showProblem(detail);
  },
};

function finish() {
  call = null;
  startedAt = 0;
  clearInterval(clockTimer);
  levels.stop();
  $("speaker").srcObject = null;
  setMuted(false);
}

function setMuted(on) {
  muted = on;
  call?.mute(on);
  $("mute").setAttribute("aria-pressed", String(on));
  $("mute").querySelector("span").textContent = on ? "Unmute" : "Mute";
  if (document.body.dataset.state === "talking") show("talking");
}

function showClock() {
  $("clock").textContent = words.duration((performance.now() - startedAt) / 1000);
}

function say(text, frame) {
  const log = $("said");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  if (frame - lastFrame > PAUSE_FRAMES || !log.lastChild) log.append(document.createElement("p"));
  lastFrame = frame;
  log.lastChild.append(log.lastChild.hasChildNodes() ? text : text.trimStart());
  while (log.childElementCount > MAX_PARAGRAPHS) log.firstChild.remove();
  if (atEnd) log.scrollTop = log.scrollHeight;
  // Read out as a whole once the agent pauses, not word by word.
  log.setAttribute("aria-busy", "true");
  clearTimeout(quietTimer);
  quietTimer = setTimeout(() => log.setAttribute("aria-busy", "false"), 800);
}

function showStats({ roundTripMs, lostIn, lostOut, bufferedMs }) {
  if (roundTripMs !== undefined) $("round-trip").textContent = words.milliseconds(roundTripMs);
  $("lost-in").textContent = words.percent(lostIn);
  if (lostOut !== undefined) $("lost-out").textContent = words.percent(lostOut);
  $("buffered").textContent = words.milliseconds(bufferedMs);
}

async function configure() {
  try {
    configuration = await (await fetch("api/config")).json();
  } catch {
    return; // a call without it still works where no server is needed; the call itself will say what is wrong
  }
  if (configuration.personas.length < 2) return;
  $("persona").replaceChildren(...configuration.personas.map((name) => new Option(name, name)));
  $("persona-field").hidden = false;
}

$("call").addEventListener("click", (event) => {
  if (event.detail > 1) return; // the second half of a double click must not cancel what the first began
  if (call) call.hangUp();
  else placeCall();
});
$("mute").addEventListener("click", () => setMuted(!muted));
window.addEventListener("pagehide", () => call?.hangUp());
configure();
if (!window.isSecureContext) showProblem({ problem: "insecure" });
