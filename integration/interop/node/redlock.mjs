// Runs node-redlock with the protocol of ../README.md. Arguments: the folder with the packages, the
// name, the TTL in milliseconds, and the ports of the Redis servers.

import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [folder, name, ttl, ...ports] = process.argv.slice(2);
const require = createRequire(`${folder}/package.json`);
const { default: Redis } = require("ioredis");
const { default: Redlock, ExecutionError } = require("redlock");

const send = (line) => console.log(`peer> ${line}`);

const servers = ports.map((port) => new Redis({ host: "127.0.0.1", port: Number(port), maxRetriesPerRequest: 1 }));
// An unreachable server counts as a missing vote.
servers.forEach((server) => server.on("error", () => {}));
await Promise.allSettled(servers.map((server) => server.ping()));

const redlock = new Redlock(servers, { retryCount: 0 });
const waiting = new Redlock(servers, { retryCount: -1, retryDelay: 20, retryJitter: 20 });
let lock;

async function execute(command) {
  try {
    switch (command) {
      case "lock":
        lock = await waiting.acquire([name], Number(ttl));
        return "held";
      case "try":
        lock = await redlock.acquire([name], Number(ttl));
        return "held";
      case "release":
        await lock.release();
        return "released";
    }
  } catch (error) {
    if (!(error instanceof ExecutionError)) throw error;
    return command === "release" ? "lost" : "refused";
  }
  throw new Error(`no such command: ${command}`);
}

// The test has ended.
process.stdin.once("end", () => process.exit(0));
send("ready");
for await (const line of createInterface({ input: process.stdin })) send(await execute(line.trim()));
