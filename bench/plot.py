# SPDX-License-Identifier: MIT
"""Rows of a bench as one SVG: seconds of each step relative to its first contestant, and the share
of the peak that each kind of operation reaches."""
import html

WIDTH, LABEL, LINE, BAR = 1100, 330, 18, 12
COLOURS = {"kron": "#2b6cb0", "kron+int8": "#2c9a8f", "diffusers": "#dd8a2b", "sdcpp": "#b8454f"}
MOST = 8  # times the first: longer bars are cut


def colour(who):
    return COLOURS.get(who) or COLOURS.get(who.partition(":")[0], "#777777")


class Svg:
    def __init__(self):
        self.parts, self.y = [], 24

    def text(self, x, text, size=12, anchor="start", weight="normal", fill="#222222"):
        self.parts.append(f'<text x="{x}" y="{self.y}" font-size="{size}" text-anchor="{anchor}" '
                          f'font-weight="{weight}" fill="{fill}">{html.escape(text)}</text>')

    def bar(self, label, share, fill, note, cut=False):
        """share: of the room there is."""
        room = WIDTH - LABEL - 260
        length = max(1.0, min(1.0, share) * room)
        self.text(LABEL - 8, label, anchor="end")
        self.parts.append(f'<rect x="{LABEL}" y="{self.y - BAR + 2}" width="{length:.1f}" '
                          f'height="{BAR}" fill="{fill}"/>')
        self.text(LABEL + length + 6, ("» " if cut else "") + note, fill="#444444")
        self.y += LINE

    def heading(self, text, size=13):
        self.y += 8
        self.text(10, text, size=size, weight="bold")
        self.y += LINE + 2

    def whole(self):
        return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{self.y + 12}" '
                f'font-family="sans-serif"><rect width="100%" height="100%" fill="#ffffff"/>'
                + "\n".join(self.parts) + "</svg>\n")


def title(row):
    size = f"{row['width']}x{row['height']}" if row.get("width") else ""
    names = {"unet": "UNet call", "guided": "step with guidance", "text": "text encoders",
             "vae": "VAE decode", "picture": "prompt to PNG", "case": "UNet call, cases",
             "against": "UNet call, to f16"}
    return f"{names.get(row['what'], row['what'])}, {row['arch']} {size}"


def draw_turns(svg, rows):
    svg.heading(title(rows[0]))
    for r in rows:
        ratio = r.get("ratio", 1)
        svg.bar(r["who"], ratio / MOST, colour(r["who"]),
                f"{ratio:.2f} times the first, {r['seconds']:.3f} s", ratio > MOST)


def draw_cases(svg, rows):
    svg.heading(title(rows[0]) + ": with adapters to without")
    for r in rows:
        svg.bar(r["who"], r["ratio"] / 2, colour("kron"),
                f"{r['ratio']:.3f}, {r['seconds']:.3f} s, peak {r['peak_rss_mb']:.0f} MB",
                r["ratio"] > 2)


def draw_roofline(svg, rows):
    first = rows[0]
    svg.heading(f"share of the roofline, {first['arch']} {first['width']}x{first['height']}, "
                f"{first['who']}: peak {first['peak_gflops']:.0f} GFLOP/s, "
                f"{first['peak_gbs']:.1f} GB/s")
    for r in rows:
        if r["share"] >= 0.005:
            svg.bar(f"{r['part']} {r['kind']}", r["of_peak"], colour("kron"),
                    f"{100 * r['of_peak']:.0f} %, {r['gflops']:.0f} GFLOP/s, "
                    f"{100 * r['share']:.1f} % of the time", r["of_peak"] > 1)


def groups(rows):
    """Rows that belong into one picture; cases of one size together."""
    found = {}
    for r in rows:
        key = r["step"] if r["what"] != "case" else ("case", r["arch"], r["width"], r["height"])
        found.setdefault(key, []).append(r)
    return found.values()


def save(rows, path):
    svg = Svg()
    machine = next((r for r in rows if "machine" in r), {})
    svg.text(10, f"Kron bench, {machine.get('machine', '')}, {machine.get('threads', '')} threads, "
             f"{machine.get('date', '')}: shorter is faster", size=16, weight="bold")
    svg.y += LINE
    draw = {"case": draw_cases, "roofline": draw_roofline}
    for group in groups(rows):
        if group[0]["what"] not in ("quality", "peak"):
            draw.get(group[0]["what"], draw_turns)(svg, group)
    with open(path, "w") as f:
        f.write(svg.whole())
