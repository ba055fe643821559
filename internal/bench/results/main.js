// Uploads and downloads an artifact and a cache entry, in blocks of 8 MB as GitHub's
// packages do, and prints MB/s of each.
const http = require('http');
const crypto = require('crypto');
const base = process.env.ACTIONS_RESULTS_URL, token = process.env.ACTIONS_RUNTIME_TOKEN;
const scope = JSON.parse(Buffer.from(token.split('.')[1], 'base64url')).scp.split(' ').find(s => s.startsWith('Actions.Results:')).split(':');
const ids = { workflow_run_backend_id: scope[1], workflow_job_run_backend_id: scope[2] };
const data = Buffer.alloc(Number(process.env.INPUT_MEGABYTES) * 1e6, 'hearth');
const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });

function request(method, url, headers, body, sink) {
  return new Promise((resolve, reject) => {
    const req = http.request(url, { method, headers, agent }, res => {
      let n = 0; const parts = [];
      res.on('data', d => { n += d.length; if (!sink) parts.push(d); });
      res.on('end', () => res.statusCode < 300 ? resolve(sink ? n : Buffer.concat(parts)) : reject(new Error(`${method} ${res.statusCode} ${Buffer.concat(parts)}`)));
    });
    req.on('error', reject);
    req.end(body);
  });
}
async function call(method, fields) {
  const body = JSON.stringify({ ...ids, ...fields });
  return JSON.parse(await request('POST', `${base}twirp/github.actions.results.api.v1.${method}`, { authorization: `Bearer ${token}`, 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }, body));
}
async function upload(url) {
  const size = 8 << 20, list = [], going = [];
  for (let at = 0; at < data.length; at += size) {
    const id = Buffer.from(String(at).padStart(16, '0')).toString('base64'), part = data.subarray(at, at + size);
    list.push(`<Latest>${id}</Latest>`);
    going.push(request('PUT', `${url}&comp=block&blockid=${encodeURIComponent(id)}`, { 'content-length': part.length }, part));
  }
  await Promise.all(going);
  const xml = `<?xml version="1.0" encoding="utf-8"?><BlockList>${list.join('')}</BlockList>`;
  await request('PUT', `${url}&comp=blocklist`, { 'content-length': Buffer.byteLength(xml) }, xml);
}
async function measure(name, fn) {
  const begin = process.hrtime.bigint();
  await fn();
  console.log(`bench ${name} ${data.length / 1e6 / (Number(process.hrtime.bigint() - begin) / 1e9)}`);
}
async function main() {
  const hash = 'sha256:' + crypto.createHash('sha256').update(data).digest('hex');
  await measure('artifact-up', async () => {
    const a = await call('ArtifactService/CreateArtifact', { name: 'bench', version: 4 });
    await upload(a.signed_upload_url ?? a.signedUploadUrl);
    await call('ArtifactService/FinalizeArtifact', { name: 'bench', size: String(data.length), hash });
  });
  await measure('artifact-down', async () => {
    const a = await call('ArtifactService/GetSignedArtifactURL', { name: 'bench' });
    if (await request('GET', a.signed_url ?? a.signedUrl, {}, undefined, true) !== data.length) throw new Error('not all of it came');
  });
  const key = `bench-${Date.now()}-${Math.random()}`, version = hash.slice(7);
  await measure('cache-up', async () => {
    const a = await call('CacheService/CreateCacheEntry', { key, version });
    await upload(a.signed_upload_url ?? a.signedUploadUrl);
    await call('CacheService/FinalizeCacheEntryUpload', { key, version, size_bytes: String(data.length) });
  });
  await measure('cache-down', async () => {
    const a = await call('CacheService/GetCacheEntryDownloadURL', { key, version, restore_keys: [] });
    if (await request('GET', a.signed_download_url ?? a.signedDownloadUrl, {}, undefined, true) !== data.length) throw new Error('not all of it came');
  });
}
main().catch(e => { console.log(`::error::${e.stack}`); process.exit(1); });
