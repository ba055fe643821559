// Package oidc is the issuer of the tokens by which a job proves to others which job
// it is: a cloud's role, a package registry. A job with `permissions: id-token:
// write` asks for one, with an audience; whoever gets it reads the issuer's keys at
// the issuer's address, and believes what the token claims.
//
//	job ── GET ACTIONS_ID_TOKEN_REQUEST_URL&audience=… ──▶ Desk ── claims ──▶ Issuer ──▶ RS256 token, five minutes
//	relying party ── GET ISSUER/.well-known/openid-configuration, ISSUER/.well-known/jwks ──▶ Issuer
//
// # What a job can and cannot say
//
// All that it chooses is the audience. The claims are GitHub's, by GitHub's names,
// and come from the plan: the repository, the ref, the event, the environment, the
// workflow file that the job stands in. They are all strings, as GitHub's are. A
// [Desk] is served on the gateway of the job's own machine and knows one job; its
// request token is good for nothing else and ends with it.
//
// # The subject
//
// Relying parties mostly look at sub alone:
//
//	repo:OWNER/NAME:environment:ENVIRONMENT    a job with an environment
//	repo:OWNER/NAME:pull_request               of a pull request
//	repo:OWNER/NAME:ref:REF                    else
//
// or, where the repository's settings list claims, those in their order. A colon in
// a value is %3A, so that no name of an environment can look like another part.
// pull_request_target counts as a pull request: who trusts a branch has not trusted
// the pull requests to it.
//
// # Keys
//
// They are RSA, 2048 bits, in one file of the state directory that its owner alone
// may read; a file that others can read is refused. A new one is made when the
// newest is [Config].Rotate old, is published a day before it signs, and the old one
// for a day after: who keeps what they have read for a day finds every key. Several
// processes may share the file: it is changed under a lock, and replaced by rename.
package oidc
