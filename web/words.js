// Every sentence the page says, in one place.

export const STATUS = {
  idle: "Ready",
  asking: "Waiting for your microphone",
  connecting: "Connecting…",
  talking: "On a call",
  muted: "On a call, muted",
  shaky: "The connection is shaky, hold on…",
  ended: "Call ended",
  failed: "No call",
};

const seconds = (n) => `${n} ${n === 1 ? "second" : "seconds"}`;

/** What to say for each way a call can fail: {title, text}. */
export const PROBLEM = {
  microphoneRefused: () => ({
    title: "The microphone is blocked",
    text: "Allow the microphone for this page in your browser's address bar or settings, then call again.",
  }),
  noMicrophone: () => ({
    title: "No microphone was found",
    text: "Plug one in or turn it on, then call again.",
  }),
  microphoneBusy: () => ({
    title: "The microphone could not be opened",
    text: "Another program may be using it. Close that program, then call again.",
  }),
  insecure: () => ({
    title: "This page needs a secure address",
    text: `Browsers open a microphone only over https or on localhost. You are on ${location.origin}.`,
  }),
  tooOld: () => ({
    title: "This browser cannot call",
    text: "It lacks WebRTC. A current Chrome, Edge, Firefox or Safari can.",
  }),
  full: () => ({
    title: "All lines are busy",
    text: "Every place is taken right now.",
  }),
  stopping: (error) => ({
    title: "The gateway is not taking calls",
    text: `It says: ${error}.`,
  }),
  refused: (error) => ({ title: "The call was refused", text: `The gateway says: ${error}.` }),
  unreachable: () => ({
    title: "The gateway does not answer",
    text: "Check your network connection, then call again.",
  }),
  notConnected: () => ({
    title: "No connection could be made",
    text: "The gateway answered, but no audio path was found. A firewall or VPN may block UDP.",
  }),
  lost: () => ({
    title: "The connection was lost",
    text: "The call is over. Check your network connection, then call again.",
  }),
  ended: (reason) => ({ title: "The call was ended", text: `The gateway says: ${reason}.` }),
};

export const retryIn = (n) => `You can try again in ${seconds(n)}.`;
export const countdown = (n) => (n > 0 ? `Try again in ${n} s` : "You can call again now.");
export const RETRY_NOW = "You can call again now";
export const percent = (part) => `${(100 * part).toFixed(1)} %`;
export const milliseconds = (value) => `${Math.round(value)} ms`;
export const level = (db) => (db <= -60 ? "silent" : `${Math.round(db)} decibels`);
export const duration = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;
