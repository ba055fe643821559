// What an action does with GitHub's packages, one verb a call, the answer as JSON. In
// an action the verb and its arguments are the input "do", a line each; in tests they
// come on standard input, as JSON, a line a call: {env, cwd, do}.
// DRIVE_ARTIFACT and DRIVE_CACHE choose the packages' versions.
import * as artifact6 from '@actions/artifact'
import * as artifact2 from 'artifact-2'
import * as cache6 from '@actions/cache'
import * as cache4 from 'cache-4'
import * as tools from '@actions/tool-cache'
import * as readline from 'node:readline'
import * as fs from 'node:fs'
import * as path from 'node:path'

let client, cache
function choose() {
  const artifacts = process.env.DRIVE_ARTIFACT === '2' ? artifact2 : artifact6
  client = new (artifacts.DefaultArtifactClient ?? artifacts.default.DefaultArtifactClient)()
  cache = process.env.DRIVE_CACHE === '4' ? cache4.default ?? cache4 : cache6
}

function files(dir) {
  return fs.readdirSync(dir, { recursive: true, withFileTypes: true }).filter(e => e.isFile()).map(e => path.join(e.parentPath ?? e.path, e.name))
}

const verbs = {
  upload: (name, dir, days) => client.uploadArtifact(name, files(dir), dir, days ? { retentionDays: Number(days) } : {}),
  uploadFile: file => client.uploadArtifact('', [file], path.dirname(file), { skipArchive: true }),
  list: () => client.listArtifacts({ latest: true }),
  get: name => client.getArtifact(name),
  download: async (name, dir) => {
    const { artifact } = await client.getArtifact(name)
    return client.downloadArtifact(artifact.id, { path: dir, expectedHash: artifact.digest })
  },
  remove: name => client.deleteArtifact(name),
  save: async (key, ...paths) => ({ id: await cache.saveCache(paths, key) }),
  restore: async (key, restore, ...paths) => ({ key: await cache.restoreCache(paths, key, restore ? restore.split(' ') : []) }),
  lookup: async (key, ...paths) => ({ key: await cache.restoreCache(paths, key, [], { lookupOnly: true }) }),
  find: (tool, version) => ({ dir: tools.find(tool, version), all: tools.findAllVersions(tool) }),
}

async function call(given) {
  choose()
  const [verb, ...args] = given
  let answer
  try {
    answer = { ok: true, ...(await verbs[verb](...args)) }
  } catch (e) {
    answer = { ok: false, error: `${e.name}: ${e.message}` }
  }
  console.log('ANSWER ' + JSON.stringify(answer, (_, v) => typeof v === 'bigint' ? String(v) : v))
  return answer.ok
}

if (process.env.INPUT_DO) {
  if (!await call(process.env.INPUT_DO.trim().split('\n'))) process.exitCode = 1
} else {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { env, cwd, do: given } = JSON.parse(line)
    Object.assign(process.env, env)
    process.chdir(cwd)
    await call(given)
  }
}
