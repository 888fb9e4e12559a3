// The answers of origin.py by node's own HTTP server.
//   node origin.mjs PORT BRIEF_PORT TLS_PORT FOLDER
// BRIEF_PORT closes an idle connection after 50 ms and every connection after 7 requests. TLS_PORT asks for a client
// certificate; FOLDER has server.pem (key and chain) and authority.pem.
import http from "node:http";
import https from "node:https";
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const [port, brief, tls, folder] = process.argv.slice(2);
const PIECE = 50_000;
const EVENT_PAUSE_MS = 20;

function pattern(size) {
  return Buffer.alloc(size, "0123456789abcdef");
}

function vectorOf(text) {
  const number = Number(text.slice(text.lastIndexOf(" ") + 1));
  return [text.length, number % 1000, Math.floor(number / 1000)];
}

async function read(request) {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  return Buffer.concat(pieces);
}

function whole(response, status, data, headers = {}) {
  response.writeHead(status, { "content-length": data.length, ...headers });
  response.end(data);
}

const answers = {
  bytes: async (request, response, rest) => whole(response, 200, pattern(Number(rest))),
  echo: async (request, response) => whole(response, 200, await read(request)),
  chunked: async (request, response, rest) => {
    const data = pattern(Number(rest));
    await read(request);
    response.writeHead(200);
    for (let at = 0; at < data.length; at += PIECE) {
      if (!response.write(data.subarray(at, at + PIECE))) await new Promise((go) => response.once("drain", go));
    }
    response.end();
  },
  gzip: async (request, response, rest) =>
    whole(response, 200, gzipSync(pattern(Number(rest)), { level: 1 }), { "content-encoding": "gzip" }),
  status: async (request, response, rest) => {
    await read(request);
    if (rest === "204" || rest === "304") response.writeHead(Number(rest)).end();
    else whole(response, Number(rest), Buffer.from(`status ${rest}`));
  },
  hints: async (request, response) => {
    response.writeEarlyHints({ link: "</style.css>; rel=preload" });
    response.writeProcessing();
    whole(response, 200, Buffer.from("after the hints"));
  },
  closing: async (request, response) => whole(response, 200, Buffer.from("the last"), { connection: "close" }),
  early: async (request, response) => whole(response, 413, Buffer.from("too large"), { connection: "close" }),
  events: async (request, response, rest) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    for (let number = 0; number < Number(rest) && !response.destroyed; number++) {
      response.write(`data: ${number}\n\n`);
      await new Promise((go) => setTimeout(go, EVENT_PAUSE_MS));
    }
    response.end();
  },
  v1: async (request, response) => {
    const texts = JSON.parse(await read(request)).input;
    const rows = texts.map((text, index) => ({ index, embedding: vectorOf(text) }));
    const answer = { data: rows, model: "m", usage: { prompt_tokens: texts.length, total_tokens: texts.length } };
    whole(response, 200, Buffer.from(JSON.stringify(answer)), { "content-type": "application/json" });
  },
};

function answer(request, response) {
  const [, what, ...rest] = request.url.split("/");
  answers[what](request, response, rest.join("/")).catch(() => response.destroy());
}

http.createServer(answer).listen(Number(port), "127.0.0.1");
const short = http.createServer({ keepAliveTimeout: 50, keepAliveTimeoutBuffer: 0 }, answer);
short.maxRequestsPerSocket = 7;
short.listen(Number(brief), "127.0.0.1");
const [server, authority] = ["server.pem", "authority.pem"].map((name) => readFileSync(`${folder}/${name}`));
https
  .createServer({ key: server, cert: server, ca: authority, requestCert: true, rejectUnauthorized: true }, answer)
  .listen(Number(tls), "127.0.0.1");
