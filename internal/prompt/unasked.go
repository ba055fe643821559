package prompt

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/workflow"
)

// This file holds a model's answer against the request: what the workflow reaches
// for has to be named by the request, or be implied by what the parser of
// phrases makes out of it. The parser need not understand all of a request for
// that: the fragments that it recognises tell what is asked for.

// implied is what a request asks for beyond the words that stand in it.
type implied struct {
	words     map[string]bool // of the request, lower case
	fragments map[string]bool
	text      string // of the request, lower case
	lex       *lexicon
}

func impliedBy(request string) implied {
	im := implied{words: map[string]bool{}, fragments: map[string]bool{}, text: strings.ToLower(request), lex: theLexicon()}
	c := newChart(theGrammar(), request)
	for _, t := range c.ts {
		im.words[t.word] = true
		im.words[strings.ToLower(t.text)] = true
		for w := range strings.FieldsFuncSeq(strings.ToLower(t.text), func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') &&
				r != '-' && r != '_'
		}) {
			im.words[w] = true
			for part := range strings.SplitSeq(w, "_") {
				im.words[part] = true
			}
		}
	}
	if len(c.ts) <= maxTokens {
		for _, n := range c.cover() {
			base, _, _ := strings.Cut(n.name, ".")
			im.fragments[base] = true
		}
	}
	return im
}

func (im implied) says(words ...string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return im.words[w] })
}

var (
	hosts   = regexp.MustCompile(`(?i)\b[a-z][a-z0-9+.-]*://(?:[^/@\s]*@)?([a-z0-9.-]+|\[[0-9a-f:]+\])|\b[\w.-]+@([a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,})\b`)
	address = regexp.MustCompile(`\b\d{1,3}(?:\.\d{1,3}){3}\b`)
	secret  = regexp.MustCompile(`(?i)\bsecrets\s*\.\s*([A-Za-z_]\w*)`)
	vault   = regexp.MustCompile(`(?i)\bsecrets\s*(?:\[|\)|,|\.\s*\*|:\s*inherit)|toJSON\s*\(\s*secrets|ACTIONS_(?:RUNTIME|ID_TOKEN)`)
	ownKey  = regexp.MustCompile(`(?i)github\s*\.\s*token|\bGITHUB_TOKEN\b`)
	post    = regexp.MustCompile(`\bcurl\b`)
	danger  = regexp.MustCompile(`(?i)\b(?:wget|nc|ncat|netcat|telnet|base64|socat|ssh|scp|sftp|rsync|ftp|printenv|eval|crontab|mkfs|dd|xxd|openssl|nslookup|dig)\b`)
	reaches = regexp.MustCompile(`(?i)\b(?:git\s+push|npm\s+publish|docker\s+push|cargo\s+publish|twine\s+upload|gh\s+(?:release|secret|api|repo|auth|pr|issue|workflow))\b|/dev/(?:tcp|udp)/|\|\s*(?:ba|z|da)?sh\b|\$\(\s*env\s*\)|\benv\s*[|>]|\brm\s+-[a-z]*[rf][a-z]*\s+(?:/|~|\$HOME)`)
)

// localWait waits for a service of the job.
var localWait = regexp.MustCompile(`\bnc -z (?:localhost|127\.0\.0\.1) \d+`)

// impliedHosts are the hosts that go with what a request speaks of.
var impliedHosts = map[string][]string{
	"registry.npmjs.org": {"npm", "yarn", "pnpm"}, "npm.pkg.github.com": {"npm"}, "upload.pypi.org": {"pypi", "twine"}, "pypi.org": {"pypi",
		"twine"}, "test.pypi.org": {"testpypi"},
	"api.nuget.org": {"nuget"}, "ghcr.io": {"ghcr"}, "users.noreply.github.com": {"commit", "git"},
}

// unasked names what a workflow reaches for that the request did not speak of.
func unasked(w *workflow.Workflow, yaml, request string) string {
	im := impliedBy(request)
	var out []string
	add := func(s string) {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	im.secrets(yaml, add)
	for _, m := range hosts.FindAllStringSubmatch(yaml, -1) {
		host := strings.ToLower(m[1] + m[2])
		if host == "localhost" || host == "127.0.0.1" || host == "0.0.0.0" {
			continue
		}
		if !strings.Contains(im.text, host) && !im.says(impliedHosts[host]...) {
			add("it speaks to " + host + ", which the request does not name")
		}
	}
	for _, ip := range address.FindAllString(yaml, -1) {
		if !strings.Contains(im.text, ip) && ip != "127.0.0.1" && ip != "0.0.0.0" {
			add("it holds the address " + ip + ", which the request does not name")
		}
	}
	for _, p := range danger.FindAllString(localWait.ReplaceAllString(yaml, ""), -1) {
		if !im.words[strings.ToLower(p)] {
			add("it uses " + p + ", which the request does not name")
		}
	}
	for _, p := range reaches.FindAllString(yaml, -1) {
		if p = strings.ToLower(spaced(p)); !strings.Contains(im.text, p) && !im.reach(p) {
			add("it uses " + p + ", which the request does not name")
		}
	}
	im.permissions(w.Permissions, "it", add)
	im.surroundings(w, add)
	for _, t := range w.On {
		switch t.Event {
		case "pull_request_target":
			if !strings.Contains(im.text, t.Event) && !im.onlyWelcomes(w) {
				add("it is triggered by " + t.Event + ", which the request does not name")
			}
		case "workflow_run":
			if !strings.Contains(im.text, t.Event) && !im.fragments["otherrun"] {
				add("it is triggered by " + t.Event + ", which the request does not ask for")
			}
		}
	}
	for _, j := range w.Jobs {
		im.permissions(j.Permissions, "job "+j.ID, add)
		if j.Uses != "" && !strings.Contains(im.text, strings.ToLower(j.Uses)) {
			add("job " + j.ID + " calls another workflow, " + j.Uses)
		}
		for s := range workflow.EachStep(j.Steps) {
			if s.Uses != "" && !im.action(s.Uses) {
				add("it uses the action " + s.Uses + ", which the request does not name")
			}
			if s.Run != nil && post.MatchString(s.Run.Str) && !im.words["curl"] && !im.message(s) {
				add("it uses curl, which the request does not name")
			}
		}
	}
	return strings.Join(out, "\n")
}

// reach says whether the request asks in other words for what a command does.
func (im implied) reach(command string) bool {
	publishes := im.publishes()
	switch command {
	case "git push":
		return im.says("commit", "commits", "bump", "gh-pages") && im.says("push", "pushes", "commit", "commits")
	case "npm publish":
		return publishes && im.says("npm", "registry", "package")
	case "docker push":
		return publishes && im.says("docker", "image", "images", "container", "registry", "ghcr")
	case "cargo publish":
		return publishes && im.says("crate", "crates.io", "crates", "cargo")
	case "twine upload":
		return publishes && im.says("pypi", "twine", "python", "package")
	case "gh release":
		return im.says("release", "releases") && im.says("create", "creates", "publish", "make", "draft", "upload", "attach", "cut", "add", "github", "tag", "tags")
	case "gh issue":
		return im.says("issue", "issues")
	case "gh pr":
		return im.says("comment", "comments", "label", "labels", "merge", "approve") || strings.Contains(im.text, "open a p") || strings.Contains(im.text,
			"create a p")
	}
	return false
}

// publishes says whether the request wants something handed out.
func (im implied) publishes() bool {
	return im.says("publish", "publishes", "publishing", "published", "upload", "uploads", "uploading", "release", "releases", "push", "pushes",
		"pushing", "pushed")
}

// usual are secrets by the names that everybody gives them: words of which the
// request has to have one.
var usual = map[string]string{
	"NPM_TOKEN": "npm semantic-release", "NODE_AUTH_TOKEN": "npm", "CODECOV_TOKEN": "codecov", "PYPI_API_TOKEN": "pypi", "PYPI_TOKEN": "pypi twine",
	"TWINE_PASSWORD": "twine pypi", "TWINE_USERNAME": "twine pypi", "CARGO_REGISTRY_TOKEN": "crates.io crates crate cargo", "DOCKERHUB_USERNAME": "dockerhub hub",
	"DOCKERHUB_TOKEN": "dockerhub hub", "DOCKER_USERNAME": "dockerhub hub", "DOCKER_PASSWORD": "dockerhub hub", "SONAR_TOKEN": "sonar sonarcloud sonarqube",
	"SNYK_TOKEN": "snyk", "COVERALLS_REPO_TOKEN": "coveralls", "NUGET_API_KEY": "nuget", "RUBYGEMS_API_KEY": "rubygems", "GEM_HOST_API_KEY": "rubygems",
	"VERCEL_TOKEN": "vercel", "NETLIFY_AUTH_TOKEN": "netlify", "NETLIFY_SITE_ID": "netlify", "CLOUDFLARE_API_TOKEN": "cloudflare wrangler",
	"FLY_API_TOKEN":  "fly flyctl fly.io",
	"HEROKU_API_KEY": "heroku", "SLACK_WEBHOOK_URL": "slack", "SLACK_WEBHOOK": "slack", "DISCORD_WEBHOOK": "discord", "DISCORD_WEBHOOK_URL": "discord",
	"FIREBASE_TOKEN": "firebase", "EXPO_TOKEN": "expo eas", "CYPRESS_RECORD_KEY": "cypress", "CHROMATIC_PROJECT_TOKEN": "chromatic", "HEX_API_KEY": "hex",
	"AWS_ACCESS_KEY_ID": "aws s3 ecs ecr lambda", "AWS_SECRET_ACCESS_KEY": "aws s3 ecs ecr lambda", "AWS_ROLE_ARN": "aws",
}

// handing are words that say that something is handed over, for which its secret is needed.
var handing = []string{"publish", "publishes", "publishing", "upload", "uploads", "push", "pushes", "deploy", "deploys", "release", "report",
	"send", "post", "notify", "secret",
	"secrets", "token", "semantic-release", "scan", "sync", "coverage", "login", "log"}

// secrets holds the secrets of a workflow against those that the request names,
// or that are called after something in it: SLACK_WEBHOOK_URL in "post to Slack".
func (im implied) secrets(yaml string, add func(string)) {
	if vault.MatchString(yaml) {
		add("it reads secrets as a whole, or the runner's own tokens")
	}
	for _, m := range secret.FindAllStringSubmatch(yaml, -1) {
		name := m[1]
		if strings.EqualFold(name, "GITHUB_TOKEN") {
			continue
		}
		if !im.secretNamed(name) {
			add("it uses the secret " + name + ", which the request does not speak of")
		}
	}
	if ownKey.MatchString(ownInput.ReplaceAllString(yaml, "")) && !im.says("token", "github_token", "gh", "release", "pages", "ghcr", "packages",
		"comment", "goreleaser",
		"issue", "label", "semantic-release", "registry", "labels", "stale", "gh-pages", "comments") && !strings.Contains(im.text, "github token") {
		add("it uses the job's token; the request does not speak of any")
	}
}

// common parts of secrets' names, which tell nothing about what they are for.
var commonParts = set("token key url secret secrets webhook password pass api user username id hook the deploy access auth github gh for in to is main test build run env prod")

func (im implied) secretNamed(name string) bool {
	lower := strings.ToLower(name)
	if im.words[lower] {
		return true
	}
	if words := usual[strings.ToUpper(name)]; words != "" && im.says(strings.Fields(words)...) && im.says(handing...) {
		return !regexp.MustCompile(`\b[a-z]+_[a-z_]+\b`).MatchString(im.text) || !im.says("secret", "secrets")
	}
	if regexp.MustCompile(`\b[a-z]+_[a-z_]+\b`).MatchString(im.text) && im.says("secret", "secrets") {
		return false // the request names its secrets
	}
	if !im.says("secret", "secrets", "token", "password", "credentials", "key") && !im.fragments["notify"] {
		return false
	}
	for part := range strings.SplitSeq(lower, "_") {
		if len(part) >= 3 && !commonParts[part] && im.words[part] {
			return true
		}
	}
	return false
}

// permissions holds permissions against what the request implies. To take
// permissions away needs no asking.
func (im implied) permissions(p *workflow.Permissions, whose string, add func(string)) {
	if p == nil || im.says("permission", "permissions") {
		return
	}
	if p.All != "" && p.All != "read-all" {
		add(whose + " sets permissions to " + p.All + "; the request does not speak of them")
	}
	for _, name := range slices.Sorted(maps.Keys(p.Scopes)) {
		access := p.Scopes[name]
		if access == "read" || access == "none" {
			continue
		}
		var ok bool
		switch name {
		case "pages":
			ok = im.fragments["pages"] || im.says("pages", "gh-pages") && im.says("deploy", "publish", "deploys", "publishes")
		case "id-token":
			ok = im.fragments["pages"] || im.says("oidc", "aws", "gcp", "azure", "google", "provenance", "attest", "attestation", "trusted", "cosign", "sign") ||
				im.says("npm", "pypi") && im.says("publish", "publishes", "release") || im.says("pages") && im.says("deploy", "publish", "deploys")
		case "contents":
			ok = im.says("goreleaser", "semantic-release", "gh-pages", "gh-deploy", "release-please", "changesets", "bump") || im.reach("git push") ||
				im.reach("gh release") ||
				im.opensPull() || strings.Contains(im.text, "gh release") || strings.Contains(im.text, "git push") ||
				strings.Contains(im.text, "create a release") || strings.Contains(im.text, "github release") && !strings.Contains(im.text,
				"release is published")
		case "packages":
			ok = im.registry()
		case "security-events":
			ok = im.says("codeql", "trivy", "sarif", "semgrep", "scorecard", "snyk") || strings.Contains(im.text, "code scanning")
		case "deployments":
			ok = im.says("deploy", "deploys", "deployment", "deployments")
		case "checks", "statuses":
			ok = im.says("annotate", "annotations", "status", "checks", "junit", "report")
		case "attestations":
			ok = im.says("attest", "attestation", "provenance")
		case "pull-requests", "issues":
			ok = im.says("comment", "comments", "label", "labels", "semantic-release", "stale", "release-please", "changesets") || im.opensPull() &&
				name == "pull-requests" ||
				im.says("issue", "issues") && im.says("open", "close", "create", "file", "closes", "opens") && name == "issues" || strings.Contains(im.text,
				"gh issue") || strings.Contains(im.text, "gh pr")
		}
		if !ok {
			add(whose + " sets the permission " + name + ": " + access + "; the request does not speak of it")
		}
	}
}

// ownInput is where actions get the job's token, which they have anyway.
var ownInput = regexp.MustCompile(`(?m)^ {10,}(?:github-token|repo-token|token): *\$\{\{ *(?:secrets\.GITHUB_TOKEN|github\.token) *\}\} *$`)

// onlyWelcomes says whether a workflow does nothing but label and greet, with
// actions of GitHub's own and without the code that was sent.
func (im implied) onlyWelcomes(w *workflow.Workflow) bool {
	for _, j := range w.Jobs {
		for s := range workflow.EachStep(j.Steps) {
			if repo, _, _ := strings.Cut(s.Uses, "@"); repo != "actions/labeler" && repo != "actions/first-interaction" {
				return false
			}
		}
	}
	return im.says("label", "labels", "welcome", "greet", "comment")
}

// opensPull says whether the request wants a pull request opened.
func (im implied) opensPull() bool {
	return regexp.MustCompile(`\b(?:open|create|raise|make|submit)s? (?:a|the|an?other) (?:new )?(?:pull request|pr)\b`).MatchString(im.text)
}

// action says whether the request names an action, or something that it is for.
func (im implied) action(uses string) bool {
	repo, _, _ := strings.Cut(strings.ToLower(uses), "@")
	if strings.HasPrefix(repo, "./") {
		return strings.Contains(im.text, repo)
	}
	if strings.HasPrefix(repo, "actions/") || strings.Contains(im.text, repo) {
		return true
	}
	for _, l := range im.lex.languages {
		setup, _, _ := strings.Cut(strings.ToLower(l.setup), "@")
		if setup == repo && (im.words[l.name] || im.says(l.words...)) {
			return true
		}
	}
	// Tools stand for their languages: "bundle exec rspec" wants Ruby.
	for _, t := range im.lex.tools {
		if !im.says(t.words...) {
			continue
		}
		if l := im.lex.languageNamed(t.language); l != nil {
			if setup, _, _ := strings.Cut(strings.ToLower(l.setup), "@"); setup == repo || slices.Contains(im.lex.actions[l.name], repo) {
				return true
			}
		}
	}
	for w, actions := range im.lex.actions {
		if im.words[w] && slices.Contains(actions, repo) {
			return true
		}
	}
	return false
}

// message says whether a step posts a message that the request asks for, to an
// address that is in a secret, and sends nothing else anywhere: of each curl's
// words, those that are no option and no option's value have to be that address.
func (im implied) message(s *workflow.Step) bool {
	if !im.fragments["notify"] && !im.says("slack", "discord", "teams", "webhook", "mattermost") {
		return false
	}
	run := s.Run.Str
	if run == "" || strings.ContainsAny(run, "`<@") || strings.Contains(run, "$(") {
		return false
	}
	if s.Run.Kind == workflow.Expression {
		// format('curl … {0}', secrets.X)
		m := formatted.FindStringSubmatch(run)
		if m == nil {
			return false
		}
		values := strings.Split(m[2], ",")
		run = placeholder.ReplaceAllStringFunc(strings.ReplaceAll(m[1], "''", "'"), func(p string) string {
			if i := int(p[1] - '0'); i < len(values) && secret.MatchString(values[i]) {
				return secretMark
			}
			return "github"
		})
	}
	for line := range strings.SplitSeq(strings.ReplaceAll(run, "\\\n", " "), "\n") {
		_, args, ok := strings.Cut(line, "curl")
		if !ok {
			continue
		}
		targets := 0
		words := shellWord.FindAllString(args, -1)
		for i := 0; i < len(words); i++ {
			w := strings.Trim(words[i], `"'`)
			switch {
			case takesValue.MatchString(words[i]):
				i++
			case strings.HasPrefix(words[i], "-"):
				if strings.ContainsAny(words[i], "=$") || strings.HasPrefix(words[i], "--upload") || strings.HasPrefix(words[i], "-T") {
					return false
				}
			case w == secretMark:
				targets++
			case variable.MatchString(w):
				v := s.Env.Get(variable.FindStringSubmatch(w)[1])
				if v == nil || !secret.MatchString(v.Str) {
					return false
				}
				targets++
			default:
				return false
			}
		}
		if targets != 1 {
			return false
		}
	}
	return true
}

const secretMark = "\x01"

var (
	formatted   = regexp.MustCompile(`(?s)^format\('(.*)',([^']*)\)$`)
	placeholder = regexp.MustCompile(`\{\d\}`)
	shellWord   = regexp.MustCompile(`(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'])+`)
	takesValue  = regexp.MustCompile(`^(?:-[a-zA-Z]*[XHd]|--(?:request|header|data|data-raw|data-binary|json|retry|max-time))$`)
	variable    = regexp.MustCompile(`^\$\{?(\w+)\}?$`)
)
