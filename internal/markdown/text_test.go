package markdown

import "testing"

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"# Plain\n\n| a |\n": "# Plain\n\n| a |\n",
		"<h1>Coverage</h1>\n<table><tr><th>file</th><th>n</th></tr><tr><td>a.go</td><td>80 &amp; x</td></tr></table>": "# Coverage\n| file | n |\n| a.go | 80 & x |\n",
		"<details><summary>More</summary>\n\nx <b>bold</b><br>y\n</details>":                                          "More\n\n\nx bold\ny\n",
		"see <a href=\"https://x.org/\">here</a>, <a href=\"javascript:x\">not</a> <img src=x alt=chart>":             "see here (https://x.org/), not [chart]",
		"`a<b>` and\n```\n<td>kept</td>\n```\n<i>x</i>":                                                               "`a<b>` and\n```\n<td>kept</td>\n```\nx",
		"<script>x</script>a<ul><li>1</li><li>2</li></ul>":                                                            "a\n- 1\n- 2\n",
		"a < b and <unknown>c</unknown> \uE000":                                                                       "a < b and c ",
		"```\nopen <b>":                                                                                               "```\nopen <b>",
	} {
		if got := Text(in); got != want {
			t.Errorf("%q:\n%q\nwant\n%q", in, got, want)
		}
	}
}
