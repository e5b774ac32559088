"""The style of the page of ``write_page``: narrow and wide, light and dark."""

STYLE = """<style>
:root{--text:#16181c;--back:#fff;--card:#f3f4f6;--line:#c9ccd1;--soft:#5b6068;--memory:#1f77b4;--arithmetic:#d9822b;--overhead:#7f7f7f}
@media(prefers-color-scheme:dark){:root{--text:#e8e9eb;--back:#15171a;--card:#202327;--line:#3c4047;--soft:#a4a9b1;--memory:#5aa9e6}}
*{box-sizing:border-box}
body{margin:0;color:var(--text);background:var(--back);font:16px/1.5 system-ui,sans-serif}
main{max-width:1200px;margin:auto;padding:1rem}
h1{font-size:1.5rem;overflow-wrap:anywhere}h2{margin-top:2.5rem;font-size:1.25rem}h3,h4{margin:.2rem 0}
p{max-width:46rem}.note{color:var(--soft)}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:.6rem;margin:0}
.facts div{background:var(--card);padding:.5rem .7rem;border-radius:.4rem}
dt{color:var(--soft);font-size:.85rem}dd{margin:0;font-weight:600;overflow-wrap:anywhere}
.layer{border:2px solid var(--line);border-radius:.6rem;padding:.7rem;margin:1.6rem 0;position:relative}
.layer:before,.layer:after,.module+.module:before{content:"↓";position:absolute;left:1.4rem;color:var(--soft);line-height:1}
.layer:before{top:-1.35rem}.layer:after{bottom:-1.35rem}.module+.module:before{top:-1.15rem}
.module{background:var(--card);border-radius:.4rem;padding:.5rem .7rem;margin:1.3rem 0 0;position:relative}
.decoder>.module{margin:0}.module p{margin:.1rem 0 .3rem;color:var(--soft);font-size:.9rem}
.wide{overflow-x:auto}.wide>svg{min-width:640px;width:100%;height:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem}
.module th{width:4.5rem}th{text-align:left;font-weight:600;padding:.2rem .6rem .2rem 0;vertical-align:top}
td{padding:.2rem .6rem .2rem 0;vertical-align:top}
.module td:last-child{width:15rem}
.figures td,.figures th{border-bottom:1px solid var(--line);white-space:nowrap}
.shape{font-family:ui-monospace,monospace}
.track{background:var(--line);height:.45rem;border-radius:.2rem;overflow:hidden}.bar{display:block;height:100%;min-width:1px}
.memory{background:var(--memory)}.arithmetic{background:var(--arithmetic)}.overhead{background:var(--overhead)}
@media(max-width:700px){
.module tr{display:block;margin-bottom:.5rem}
.module td,.module th,.module td:last-child{display:block;width:auto}}
</style>"""
